//! What slots hold: saved, put back, forgotten.
use crate::common::{ask, get, golden, options, refused, server_of};
use hurtle_engine::ServiceOptions;
use hurtle_server::{Server, ServerOptions};
use serde_json::{Value, json};
use std::path::Path;

fn with_folder(folder: &Path) -> Server {
    let service = ServiceOptions { max_sequences: 2, ..options().service };
    let options = ServerOptions { slot_dir: Some(folder.to_owned()), service, ..options() };
    server_of(&golden("llama.gguf"), options)
}

/// An answer of 5 tokens to a prompt of 100, in a slot.
async fn complete(server: &Server, slot: i64) -> Value {
    let prompt: Vec<u32> = (5..105).collect();
    let body = json!({"prompt": prompt, "n_predict": 5, "ignore_eos": true, "temperature": 0, "id_slot": slot});
    ask(server, "/completion", body).await
}

#[tokio::test]
async fn a_slot_is_saved_erased_and_restored() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = with_folder(folder.path());
    let first = complete(&server, 1).await;
    assert_eq!((&first["id_slot"], &first["timings"]["cache_n"]), (&json!(1), &json!(0)));
    let name = json!({"filename": "one.bin"});
    let saved = ask(&server, "/slots/1?action=save", name.clone()).await;
    assert_eq!(
        (&saved["n_saved"], &saved["filename"]),
        (&first["tokens_cached"], &json!("one.bin"))
    );
    let file = folder.path().join("one.bin").metadata().expect("a file").len();
    assert_eq!((&saved["n_written"], &saved["id_slot"]), (&json!(file), &json!(1)));

    let erased = ask(&server, "/slots/1?action=erase", json!({})).await;
    assert_eq!((&erased["id_slot"], &erased["n_erased"]), (&json!(1), &saved["n_saved"]));
    let empty = ask(&server, "/slots/1?action=erase", json!({})).await;
    assert_eq!(empty["n_erased"], 0);
    assert_eq!(complete(&server, 0).await["timings"]["cache_n"], 0, "all of it is processed again");

    // The next server takes it up.
    for server in [server, with_folder(folder.path())] {
        ask(&server, "/slots/0?action=erase", json!({})).await;
        let restored = ask(&server, "/slots/0?action=restore", name.clone()).await;
        assert_eq!(
            (&restored["n_restored"], &restored["n_read"]),
            (&saved["n_saved"], &json!(file))
        );
        let again = complete(&server, 0).await;
        assert_eq!((&again["id_slot"], &again["timings"]["cache_n"]), (&json!(0), &json!(99)));
        assert_eq!(again["content"], first["content"]);
    }
}

#[tokio::test]
async fn who_names_no_slot_has_the_first_that_is_free() {
    let server = with_folder(Path::new("."));
    assert_eq!(complete(&server, -1).await["id_slot"], 0);
    let slots = get(&server, "/slots").await;
    let slots = slots.as_array().expect("slots");
    assert_eq!(slots.iter().map(|slot| &slot["id"]).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn what_is_no_slot_or_no_file_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = with_folder(folder.path());
    let name = json!({"filename": "a.bin"});
    refused(&server, "/slots/2?action=save", name.clone(), 400, &["there is no slot 2"]).await;
    refused(&server, "/slots/x?action=save", name.clone(), 400, &["id_slot"]).await;
    refused(&server, "/slots/0?action=keep", name.clone(), 400, &["save, restore or erase"]).await;
    refused(&server, "/slots/0", name.clone(), 400, &["action"]).await;
    refused(&server, "/slots/0?action=restore", name.clone(), 400, &["a.bin"]).await;
    std::fs::write(folder.path().join("b.bin"), "hurtlesl").expect("written");
    let damaged = json!({"filename": "b.bin"});
    refused(&server, "/slots/0?action=restore", damaged, 400, &["b.bin", "damaged"]).await;
    for wrong in ["", "../a", "/a", ".a", "a/b", "a\\b", "a\0"] {
        let body = json!({"filename": wrong});
        refused(&server, "/slots/0?action=save", body, 400, &["filename"]).await;
    }
    let body = json!({"prompt": "a", "id_slot": 2});
    refused(&server, "/completion", body, 400, &["id_slot: expected less than 2"]).await;
    let body = json!({"prompt": "a", "id_slot": -2});
    refused(&server, "/completion", body, 400, &["id_slot"]).await;
    let none = crate::common::server("llama");
    refused(&none, "/slots/0?action=save", name, 501, &["--slot-save-path"]).await;
    ask(&server, "/slots/0?action=erase", json!({})).await;
}
