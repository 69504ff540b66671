//! `hurtle serve` with the clients that people have: the Python packages openai, ollama and litellm.
use crate::serve::Server;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

#[test]
fn python_clients_talk_to_the_server() {
    let (Some(clients), Some(models)) =
        (std::env::var_os("HURTLE_TEST_CLIENTS"), std::env::var_os("HURTLE_TEST_MODELS"))
    else {
        eprintln!("skipped: `cargo xtask test` fetches the clients and the model that it needs");
        return;
    };
    let home = TempDir::new().expect("a folder");
    let model = Path::new(&models).join("gemma3-270m-q4_k_m.gguf");
    let server = Server::start(home.path(), &["-m", model.to_str().expect("a path")]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients.py");
    let python = std::env::var_os("HURTLE_PYTHON").unwrap_or_else(|| "python3".into());
    let output = Command::new(python)
        .arg(script)
        .args([&format!("http://{}", server.address), "gemma3-270m-q4_k_m"])
        .env("PYTHONPATH", clients)
        // Otherwise it asks the network for prices.
        .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .expect("Python starts");
    let (said, error) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{error}");
    for client in ["by_openai", "by_ollama", "by_litellm"] {
        assert!(said.contains(&format!("ok {client}")), "{client}: {said}{error}");
    }
    server.terminate();
    server.ends();
}
