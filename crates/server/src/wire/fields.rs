//! Reading a request field by field, so that nothing is dropped in silence: what a decoder does not take,
//! [`Fields::finish`] refuses by its name.
use crate::error::{ApiError, ErrorKind};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The fields of a JSON object that are not read yet.
#[derive(Debug)]
pub(super) struct Fields {
    map: Map<String, Value>,
    /// What stands before the names in messages: `options.`.
    path: String,
}

impl Fields {
    /// The body of a request.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body).map_err(|error| {
            let at = error.valid_up_to();
            ApiError::new(ErrorKind::Invalid, format!("the body is not UTF-8: byte {at} is wrong"))
        })?;
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Self { map, path: String::new() }),
            Ok(other) => Err(ApiError::new(
                ErrorKind::Invalid,
                format!("expected a JSON object, found {}", kind(&other)),
            )),
            // The parser stops at its own limit of nesting, so that no body exhausts the stack.
            Err(error) => {
                Err(ApiError::new(ErrorKind::Invalid, format!("the body is not JSON: {error}")))
            }
        }
    }

    /// The object in the field `name`, if there is one.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        let path = format!("{}{name}.", self.path);
        match self.map.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { map, path })),
            Some(other) => {
                Err(self.wrong(name, &format!("expected an object, found {}", kind(&other))))
            }
        }
    }

    /// The field `name`; `null` is as good as missing.
    pub(super) fn opt<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.map.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|e| self.wrong(name, &e.to_string())),
        }
    }

    /// The field `name` as it was sent, read or not yet.
    pub(super) fn sent(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// The first of several names for one field that is there.
    pub(super) fn any<T: DeserializeOwned>(
        &mut self,
        names: &[&str],
    ) -> Result<Option<T>, ApiError> {
        let mut found = None;
        for name in names {
            let value = self.opt(name)?;
            found = found.or(value);
        }
        Ok(found)
    }

    /// The field `name`, which must be there.
    pub(super) fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.opt(name)?.ok_or_else(|| self.wrong(name, "is missing"))
    }

    /// A field that only one value is allowed for, which is also what its absence means.
    pub(super) fn only(&mut self, name: &str, allowed: Value, why: &str) -> Result<(), ApiError> {
        match self.map.shift_remove(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value == allowed => Ok(()),
            Some(value) => Err(self.wrong(name, &format!("{value} is not supported: {why}"))),
        }
    }

    /// Refuses what nobody has read; `ignored` may stay.
    pub(super) fn finish(mut self, ignored: &[&str]) -> Result<(), ApiError> {
        self.map.retain(|name, value| !value.is_null() && !ignored.contains(&name.as_str()));
        match self.map.keys().next() {
            None => Ok(()),
            Some(name) => Err(self.wrong(name, "is not a parameter that is supported here")),
        }
    }

    /// An error about the field `name`.
    pub(super) fn wrong(&self, name: &str, what: &str) -> ApiError {
        let param = format!("{}{name}", self.path);
        let message = if what.starts_with("is ") {
            format!("{param} {what}")
        } else {
            format!("{param}: {what}")
        };
        ApiError::invalid(param, message)
    }
}

/// What a JSON value is called.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        let check = |body: &[u8], expected: &str| {
            let error = Fields::parse(body).expect_err("refused");
            assert!(error.message.contains(expected), "{error}");
            assert_eq!(error.status(), 400);
        };
        check(b"\"\xff\"", "not UTF-8: byte 1");
        check(b"[1]", "expected a JSON object, found an array");
        check(b"{\"a\": }", "not JSON");
        check(b"", "not JSON");
        check(&[b'['; 100_000], "recursion limit");
    }

    #[test]
    fn what_nobody_reads_is_refused_by_name() {
        let body = br#"{"n": 1, "user": "u", "nothing": null, "options": {"typo": 1}}"#;
        let mut fields = Fields::parse(body).expect("fields");
        assert_eq!(fields.opt::<usize>("n"), Ok(Some(1)));
        let options = fields.object("options").expect("an object").expect("there");
        let error = options.finish(&[]).expect_err("refused");
        assert_eq!(error.param.as_deref(), Some("options.typo"));
        assert_eq!(fields.finish(&["user"]), Ok(()));
    }

    #[test]
    fn a_wrong_type_is_told_with_the_name() {
        let mut fields = Fields::parse(br#"{"n": "three"}"#).expect("fields");
        let error = fields.opt::<usize>("n").expect_err("refused");
        assert!(error.message.starts_with("n: invalid type"), "{error}");
    }
}
