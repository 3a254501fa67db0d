//! Downloads from a Hub that these tests serve themselves: nothing leaves the machine.

mod common;

use common::http::{Reply, Request, Server, entry, hex, refuse, send};
use engraft::hub::{
    Client, Digest, Download, DownloadEvent, HubError, HubOptions, Outcome, WeightFiles, downloaded,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const NAME: &str = "org/model";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a server was asked for, but for the listing.
fn files(server: &Server) -> Vec<String> {
    let requests = server.requests().into_iter().map(|request| request.path);
    let mut files: Vec<_> = requests.filter_map(|path| Some(path.split_once(COMMIT)?.1.to_owned())).collect();
    files.sort();
    files
}

fn weights() -> Vec<u8> {
    (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

const CONFIG: &[u8] = b"{\"model_type\": \"llama\"}";

fn listing(weights: &[u8]) -> Reply {
    let siblings = json!([
        entry(".gitattributes", b"x", false),
        entry("README.md", b"# x", false),
        entry("config.json", CONFIG, false),
        entry("model.safetensors", weights, true),
        entry("pytorch_model.bin", b"old", true),
        entry("tokenizer.json", b"{}", false),
    ]);
    let body = json!({"id": NAME, "sha": COMMIT, "siblings": siblings}).to_string().into_bytes();
    Reply { status: 200, body, ..Reply::default() }
}

/// A Hub with one model, whose weights `large` answers.
fn hub(large: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request| match request.path.split_once(COMMIT) {
        Some((_, "/config.json")) => send(request, CONFIG),
        Some((_, "/tokenizer.json")) => send(request, b"{}"),
        Some((_, "/model.safetensors")) => large(request),
        _ if request.path == format!("/api/models/{NAME}/revision/main?blobs=true") => listing(&weights()),
        _ => refuse(404, "EntryNotFound", "Entry not found"),
    })
}

fn run(options: HubOptions, folder: &Path) -> (Result<Outcome, HubError>, Vec<DownloadEvent>) {
    let events = Mutex::new(Vec::new());
    let download =
        Download { name: NAME.parse().unwrap(), folder: folder.to_owned(), weights: WeightFiles::Fetched };
    let result = download.run(&Client::new(options), &|event| events.lock().unwrap().push(event));
    (result, events.into_inner().unwrap())
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("org").join("model");
    (temporary, folder)
}

fn partials(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join(".engraft")).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "partial"))
        .collect()
}

#[test]
fn a_model_is_downloaded_once_and_then_checked() {
    let cdn = Server::start(|request| send(request, &weights()));
    let signed = format!("{}/blob?signature=s", cdn.url);
    let hub =
        hub(move |_| Reply { status: 302, headers: vec![("Location", signed.clone())], ..Reply::default() });
    let options = || HubOptions { token: Some("hf_secret".into()), ..hub.options() };
    let (temporary, folder) = folder();
    let name = NAME.parse().unwrap();
    assert_eq!(downloaded(temporary.path(), &name), None);

    let (outcome, events) = run(options(), &folder);
    let size = 3_000_000 + CONFIG.len() as u64 + 2;
    let expected = Outcome { commit: COMMIT.into(), files: 3, kept: 0, bytes: size };
    assert_eq!(outcome.unwrap(), expected);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), CONFIG);
    assert!(!folder.join("README.md").exists() && !folder.join("pytorch_model.bin").exists());
    assert!(partials(&folder).is_empty());
    assert_eq!(downloaded(temporary.path(), &name), Some(folder.clone()));
    let DownloadEvent::Listed(listing) = &events[0] else { panic!("{events:?}") };
    assert!(matches!(&listing.files[1].digest, Digest::Sha256(_)) && listing.files[1].size == 3_000_000);
    assert!(matches!(&listing.files[0].digest, Digest::GitBlob(_)));
    assert_eq!(events.iter().filter(|event| matches!(event, DownloadEvent::Done { .. })).count(), 3);

    // the token goes to the Hub, and to nobody else
    assert!(hub.requests().iter().all(|request| request.header("Authorization") == Some("Bearer hf_secret")));
    assert_eq!(cdn.requests().len(), 1);
    assert_eq!(cdn.requests()[0].header("Authorization"), None);

    // what is right stays, what is not comes again
    hub.forget();
    let (outcome, _) = run(options(), &folder);
    assert_eq!(outcome.unwrap(), Outcome { kept: 3, ..expected.clone() });
    assert!(files(&hub).is_empty());
    let mut damaged = weights();
    damaged[1_500_000] ^= 1;
    fs::write(folder.join("model.safetensors"), damaged).unwrap();
    fs::remove_file(folder.join("config.json")).unwrap();
    let (outcome, _) = run(options(), &folder);
    assert_eq!(outcome.unwrap(), Outcome { kept: 1, ..expected });
    assert_eq!(files(&hub), ["/config.json", "/model.safetensors"]);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_connection_that_breaks_off_is_gone_on_with() {
    let hub = hub(|request| Reply { cut: Some(1_000_000), ..send(request, &weights()) });
    let (_temporary, folder) = folder();
    let (outcome, events) = run(hub.options(), &folder);
    outcome.unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    let asked = hub.requests().into_iter().filter(|request| request.path.ends_with("model.safetensors"));
    assert_eq!(asked.map(|request| request.from()).collect::<Vec<_>>(), [0, 1_000_000, 2_000_000]);
    assert_eq!(events.iter().filter(|event| matches!(event, DownloadEvent::Retry { .. })).count(), 2);
}

#[test]
fn the_next_call_goes_on_where_the_last_one_ended() {
    let down = Arc::new(Mutex::new(true));
    let state = Arc::clone(&down);
    let hub = hub(move |request| match *state.lock().unwrap() {
        true if request.from() > 0 => refuse(503, "", "down"),
        down => Reply { cut: down.then_some(700_000), ..send(request, &weights()) },
    });
    let (temporary, folder) = folder();
    let (outcome, _) = run(hub.options(), &folder);
    let error = outcome.unwrap_err();
    assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");
    assert!(!folder.join("model.safetensors").exists(), "no file before it is whole");
    assert_eq!(fs::metadata(&partials(&folder)[0]).unwrap().len(), 700_000);
    assert_eq!(downloaded(temporary.path(), &NAME.parse().unwrap()), None);

    *down.lock().unwrap() = false;
    hub.forget();
    let (outcome, _) = run(hub.options(), &folder);
    assert_eq!(outcome.unwrap().kept, 2);
    let last = hub.requests().pop().unwrap();
    assert_eq!((last.path.rsplit('/').next(), last.from()), (Some("model.safetensors"), 700_000));
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_server_without_ranges_and_a_part_of_something_else_begin_again() {
    // without ranges: all of it, whatever was asked for
    let first = Mutex::new(true);
    let plain = hub(move |_| {
        let cut = std::mem::take(&mut *first.lock().unwrap()).then_some(500_000);
        Reply { status: 200, body: weights(), cut, ..Reply::default() }
    });
    let (_temporary, target) = folder();
    run(plain.options(), &target).0.unwrap();
    assert_eq!(fs::read(target.join("model.safetensors")).unwrap(), weights());

    // a part that is not the beginning of the file, and one that is longer than it
    let hub = hub(|request| send(request, &weights()));
    for part in [vec![7; 1000], vec![7; 3_000_000], vec![7; 4_000_000]] {
        let (_temporary, target) = folder();
        let blob = hex(&Sha256::digest(weights()));
        fs::create_dir_all(target.join(".engraft")).unwrap();
        let path = target.join(".engraft").join(format!("model.safetensors.{}.partial", &blob[..16]));
        fs::write(&path, &part).unwrap();
        run(hub.options(), &target).0.unwrap();
        assert_eq!(fs::read(target.join("model.safetensors")).unwrap(), weights());
        assert!(!path.exists());
    }
}

#[test]
fn content_that_is_not_what_the_hub_says_is_thrown_away() {
    for (wrong, long) in [(vec![1; 3_000_000], false), (vec![1; 3_000_001], true)] {
        let hub = hub(move |request| send(request, &wrong));
        let (_temporary, folder) = folder();
        let error = run(hub.options(), &folder).0.unwrap_err();
        let message = error.to_string();
        match long {
            false => {
                assert!(matches!(error, HubError::Checksum { kind: "SHA-256", .. }), "{message}");
                assert!(
                    message.contains("model.safetensors")
                        && message.contains(&hex(&Sha256::digest(weights())))
                );
                assert!(partials(&folder).is_empty());
            }
            true => assert!(message.contains("more than the 3000000 bytes"), "{message}"),
        }
        assert!(!folder.join("model.safetensors").exists() && !error.is_input());
        assert_eq!(files(&hub).iter().filter(|file| file.ends_with("safetensors")).count(), 1);
    }
}

#[test]
fn refusals_say_what_to_do() {
    let refused = |token: Option<&str>, status, code: &'static str, message: &'static str| {
        let hub = Server::start(move |_| refuse(status, code, message));
        let options = HubOptions { token: token.map(str::to_owned), ..hub.options() };
        let (_temporary, folder) = folder();
        let error = run(options, &folder).0.unwrap_err();
        assert!(error.is_input(), "{error}");
        assert_eq!(hub.requests().len(), 1, "no use in trying again");
        assert!(!folder.exists(), "nothing is written for a refusal");
        error.to_string()
    };
    let gated = refused(None, 401, "GatedRepo", "Access to model org/model is restricted.");
    assert!(gated.contains("/org/model, then make a token") && gated.contains("HF_TOKEN"), "{gated}");
    let waiting = refused(Some("t"), 403, "GatedRepo", "Access is restricted and you are not in the list.");
    assert!(waiting.contains("until access is granted"), "{waiting}");
    for (status, code) in [(401, "RepoNotFound"), (404, "RepoNotFound"), (404, ""), (401, "")] {
        let missing = refused(None, status, code, "Repository not found");
        assert!(missing.contains("no model org/model") && missing.contains("HF_TOKEN"), "{missing}");
    }
    assert!(refused(None, 404, "RevisionNotFound", "").contains("no revision \"main\""));
    let token = refused(Some("t"), 401, "", "Invalid credentials in Authorization header");
    assert!(token.contains("does not accept the token"), "{token}");

    // access is told by the files where the listing is public
    let gated = hub(|_| refuse(401, "GatedRepo", ""));
    let (_temporary, target) = folder();
    let error = run(gated.options(), &target).0.unwrap_err();
    assert!(matches!(error, HubError::Gated { .. }), "{error}");

    let body =
        json!({"sha": COMMIT, "siblings": [entry("config.json", CONFIG, false), entry("m.bin", b"x", true)]});
    let hub = Server::start(move |_| Reply {
        status: 200,
        body: body.to_string().into_bytes(),
        ..Reply::default()
    });
    let error = run(hub.options(), &target).0.unwrap_err().to_string();
    assert!(error.contains("no *.safetensors (m.bin)"), "{error}");
}

#[test]
fn a_busy_hub_is_tried_again_and_a_missing_one_is_told() {
    let busy = Mutex::new(2);
    let hub = hub(move |request| {
        let mut busy = busy.lock().unwrap();
        *busy -= i32::from(*busy > 0);
        match *busy {
            0 => send(request, &weights()),
            _ => Reply { headers: vec![("Retry-After", "0".into())], ..refuse(429, "", "slow down") },
        }
    });
    let (_temporary, target) = folder();
    run(hub.options(), &target).0.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (_temporary, target) = folder();
    let (outcome, events) = run(HubOptions { endpoint: gone, ..hub.options() }, &target);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("HF_ENDPOINT"), "{error}");
    assert_eq!(events.len(), 2, "three tries, two pauses: {events:?}");

    let looped = Server::start(|_| Reply {
        status: 302,
        headers: vec![("Location", "/x".into())],
        ..Reply::default()
    });
    let error = run(looped.options(), &target).0.unwrap_err().to_string();
    assert!(error.contains("redirects"), "{error}");
    let garbage = Server::start(|_| Reply { status: 200, body: b"<html>".to_vec(), ..Reply::default() });
    let error = run(garbage.options(), &target).0.unwrap_err().to_string();
    assert!(error.contains("is HF_ENDPOINT a Hub?"), "{error}");
}

#[test]
fn a_new_version_replaces_the_old_one() {
    let (temporary, folder) = folder();
    let version = |shards: usize, commit: &'static str| {
        let name = move |i: usize| format!("model-{i:05}-of-{shards:05}.safetensors");
        let mut files = vec![entry("config.json", CONFIG, false)];
        files.extend((0..shards).map(|i| entry(&name(i), name(i).as_bytes(), true)));
        let body = json!({"sha": commit, "siblings": files}).to_string().into_bytes();
        Server::start(move |request| match request.path.rsplit('/').next() {
            Some("config.json") => send(request, CONFIG),
            Some(file) if file.ends_with(".safetensors") => send(request, file.as_bytes()),
            _ => Reply { status: 200, body: body.clone(), ..Reply::default() },
        })
    };
    let old = version(2, "1111111111111111111111111111111111111111");
    run(old.options(), &folder).0.unwrap();
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    let new = version(3, "2222222222222222222222222222222222222222");
    assert_eq!(run(new.options(), &folder).0.unwrap().kept, 1);
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let shards = [
        "model-00000-of-00003.safetensors",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
    ];
    let expected = [&[".engraft", "config.json"][..], &shards, &["notes.txt"]].concat();
    assert_eq!(names, expected);

    // a folder that lacks something is not taken for a model; one at a time downloads
    let name = NAME.parse().unwrap();
    assert!(downloaded(temporary.path(), &name).is_some());
    fs::write(folder.join(shards[1]), "short").unwrap();
    assert_eq!(downloaded(temporary.path(), &name), None);
    let lock = fs::File::open(folder.join(".engraft/lock")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(run(new.options(), &folder).0, Err(HubError::Busy { .. })));
    drop(lock);
    run(new.options(), &folder).0.unwrap();
}

/// Runs the program with a Hub of the test's own.
fn engraft(hub: &str, models: &Path, token: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("HF_") || name.starts_with("HUGGING") || name.to_lowercase().ends_with("_proxy") {
            command.env_remove(name);
        }
    }
    command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command.env("ENGRAFT_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    // no token of this machine's user
    command.env("HF_HOME", models.join("nowhere"));
    command.env("HF_ENDPOINT", hub).env("ENGRAFT_MODELS", models);
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    command.args(arguments).output().unwrap()
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// The Hub with the fixture of a Llama, whole.
fn llama_hub() -> Server {
    hub_of("models/llama", |_| ())
}

/// The Hub with a fixture as tiny/llama; `change` makes of its listing what it pleases.
fn hub_of(fixture: &str, change: impl Fn(&mut Value)) -> Server {
    // what a fixture lacks, such as a tokenizer, is the Llama's
    let place = |name: &str| {
        let own = common::fixtures().join(fixture).join(name);
        if own.exists() { own } else { common::fixtures().join("models/llama").join(name) }
    };
    let read = |name: &str| fs::read(place(name)).unwrap();
    let names = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let files: Vec<(String, Vec<u8>)> = names.iter().map(|name| ((*name).to_owned(), read(name))).collect();
    let entries = files.iter().map(|(name, content)| entry(name, content, name.ends_with("safetensors")));
    let mut listing = json!({"sha": COMMIT, "siblings": entries.collect::<Vec<_>>()});
    change(&mut listing);
    let body = listing.to_string().into_bytes();
    Server::start(move |request| {
        let file = request.path.split_once(&format!("{COMMIT}/")).map(|(_, name)| name);
        match (file, files.iter().find(|(name, _)| Some(name.as_str()) == file)) {
            (_, Some((_, content))) => send(request, content),
            (None, None) if request.path.contains("/api/models/tiny/llama/") => {
                Reply { status: 200, body: body.clone(), ..Reply::default() }
            }
            _ => refuse(404, "RepoNotFound", "Repository not found"),
        }
    })
}

#[test]
fn the_command_downloads_and_checks() {
    let hub = llama_hub();
    let temporary = tempfile::tempdir().unwrap();
    let models = temporary.path();
    let (code, out, err) = said(&engraft(&hub.url, models, Some("hf_x"), &["download", "tiny/llama"]));
    assert_eq!(code, 0, "{err}");
    let folder = models.join("tiny").join("llama");
    assert_eq!(out.trim_end(), folder.to_str().unwrap());
    assert!(err.contains("5 files, 5 of them new") && err.contains("model.safetensors: "), "{err}");
    assert!(hub.requests().iter().all(|request| request.header("Authorization") == Some("Bearer hf_x")));
    let (code, _, err) = said(&engraft(&hub.url, models, None, &["download", "tiny/llama"]));
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("all 5 files were here and are right"), "{err}");

    // a revision has a folder of its own; a folder can be named; quiet is quiet
    let own = temporary.path().join("own");
    let words = ["download", "tiny/llama", "--revision", "v1", "--out_dir", own.to_str().unwrap(), "--quiet"];
    let (code, out, err) = said(&engraft(&hub.url, models, None, &words));
    assert_eq!((code, err.as_str(), out.trim_end()), (0, "", own.to_str().unwrap()));
    assert!(hub.requests().iter().any(|request| request.path.contains("/revision/v1?")));
    let (_, out, _) = said(&engraft(&hub.url, models, None, &["download", "tiny/llama@v1"]));
    assert_eq!(out.trim_end(), models.join("tiny").join("llama@v1").to_str().unwrap());

    for (words, expected) in [
        (&["download", "tiny/other"][..], "no model tiny/other"),
        (&["download", "llama"], "ORG/NAME"),
        (&["download", "tiny/llama", "--revision", "../x"], "ORG/NAME"),
    ] {
        let (code, out, err) = said(&engraft(&hub.url, models, None, words));
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.starts_with("engraft: ") && err.contains(expected), "{err}");
    }
    let (code, _, err) = said(&engraft("huggingface.co", models, None, &["download", "tiny/llama"]));
    assert!(code == 2 && err.contains("HF_ENDPOINT"), "{err}");
}

#[test]
fn a_model_is_taken_by_its_name() {
    let hub = llama_hub();
    let temporary = tempfile::tempdir().unwrap();
    let models = temporary.path().join("models");
    let rows = temporary.path().join("rows.json");
    fs::write(&rows, r#"[{"instruction": "a", "output": "b"}]"#).unwrap();
    let rows = rows.to_str().unwrap();
    let call = |hub: &str, words: &[&str]| said(&engraft(hub, &models, None, words));

    // data and plans need no weights
    let data = ["data", rows, "--model", "tiny/llama"];
    let (code, _, err) = call(&hub.url, &data);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("tiny/llama is no folder here: downloading it, but for its weights"), "{err}");
    let (code, out, err) = call(&hub.url, &["plan", "tiny/llama", "--max_seq_length", "64", "--quiet"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("parameters"), "{out}");
    assert!(files(&hub).iter().all(|file| !file.ends_with(".safetensors")), "{:?}", files(&hub));

    // what is whole needs no Hub any more
    assert_eq!(call(&hub.url, &["download", "tiny/llama"]).0, 0);
    let (code, _, err) = call("http://127.0.0.1:1", &data);
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("tiny/llama is "), "{err}");
    if common::gpu().is_some() {
        let words = ["generate", "tiny/llama", "--prompt", "the cat", "--max_new_tokens", "3"];
        let (code, out, err) = call("http://127.0.0.1:1", &words);
        assert!(code == 0 && !out.is_empty(), "{err}");
    }

    // what may be a misspelt path is asked for twice
    let (code, _, err) = call("http://127.0.0.1:1", &["plan", "tiny/lama", "--max_seq_length", "64"]);
    assert!(code != 0 && err.matches("again in").count() == 1, "{err}");

    // what needs no device takes a name as well
    let (code, out, err) = call("http://127.0.0.1:1", &["validate", "tiny/llama"]);
    assert!(code == 0 && out.contains("configuration"), "{out}{err}");
    let gguf = temporary.path().join("llama.gguf");
    let (code, _, err) =
        call("http://127.0.0.1:1", &["export", "tiny/llama", "--gguf", gguf.to_str().unwrap()]);
    assert!(code == 0 && gguf.is_file(), "{err}");
    // and so is the base that an adapter names found
    if common::gpu().is_some() {
        let path = |name: &str| temporary.path().join(name).to_str().unwrap().to_owned();
        let (adapter, merged) = (path("adapter"), path("merged"));
        let train =
            ["finetune", "tiny/llama", "--data", rows, "--data.val_split_fraction", "0", "--max_steps", "1"];
        let (code, _, err) =
            call("http://127.0.0.1:1", &[&train[..], &["--tune", "off", "--out_dir", &adapter]].concat());
        assert_eq!(code, 0, "{err}");
        let config = Path::new(&adapter).join("adapter_config.json");
        let mut settings: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        settings["base_model_name_or_path"] = json!("tiny/llama");
        fs::write(&config, settings.to_string()).unwrap();
        let (code, _, err) = call("http://127.0.0.1:1", &["merge", &adapter, "--out_dir", &merged]);
        assert!(code == 0 && Path::new(&merged).join("model.safetensors").is_file(), "{err}");
    }

    let mut offline = Command::new(env!("CARGO_BIN_EXE_engraft"));
    offline.env("HF_HUB_OFFLINE", "1").env("ENGRAFT_MODELS", &models);
    let (code, _, err) = said(&offline.args(["data", rows, "--model", "tiny/other"]).output().unwrap());
    assert!(code == 2 && err.contains("HF_HUB_OFFLINE"), "{err}");
    // a folder is a folder, and what looks like neither is told as before
    let (code, _, err) = call(&hub.url, &["data", rows, "--model", "./tiny/llama"]);
    assert!(code == 2 && err.contains("tokenizer.json"), "{err}");
}

#[test]
fn a_run_that_cannot_be_is_refused_before_its_weights_are_downloaded() {
    if common::gpu().is_none() {
        return;
    }
    let hub = llama_hub();
    let temporary = tempfile::tempdir().unwrap();
    let models = temporary.path().join("models");
    let path = |name: &str| temporary.path().join(name).to_str().unwrap().to_owned();
    let row = |i: usize| json!({"instruction": format!("Repeat {i}"), "output": "b"});
    fs::write(path("rows.json"), json!((0..20).map(row).collect::<Vec<_>>()).to_string()).unwrap();
    fs::write(path("wrong.json"), r#"[{"instruction": "a", "outptu": "b"}]"#).unwrap();
    let (rows, out) = (path("rows.json"), path("out"));
    let run = |data: &str, more: &[&str]| {
        let words = ["finetune", "tiny/llama", "--data", data, "--out_dir", &out, "--max_steps", "1"];
        said(&engraft(&hub.url, &models, None, &[&words, more].concat()))
    };
    for (data, more, expected) in [
        (path("none.json"), &[][..], "none.json"),
        (path("wrong.json"), &[], "outptu"),
        (rows.clone(), &["--gpu", "no such card"], "no such card"),
        (rows.clone(), &["--eval_prompts", "no-such.txt"], "no-such.txt"),
        (rows.clone(), &["--lora_targets", "q_porj"], "q_porj"),
        (
            rows.clone(),
            &["--keep_best", "--eval_interval", "1", "--data.val_split_fraction", "0"],
            "validation rows",
        ),
        (rows.clone(), &["--memory_limit", "64KiB"], "out of memory before anything was done"),
    ] {
        let (code, _, err) = run(&data, more);
        assert!(code != 0 && err.contains(expected), "{expected}: {err}");
    }
    assert!(!Path::new(&out).exists());
    // nor are they needed where they are drawn at random
    let drawn = path("drawn");
    let words = ["finetune_full", "tiny/llama", "--init", "random", "--data", &rows, "--out_dir", &drawn];
    let (code, _, err) =
        said(&engraft(&hub.url, &models, None, &[&words[..], &["--max_steps", "1"]].concat()));
    assert!(code == 0 && Path::new(&drawn).join("model.safetensors").exists(), "{err}");
    assert!(files(&hub).iter().all(|file| !file.ends_with(".safetensors")), "{:?}", files(&hub));

    let (code, _, err) = run(&rows, &[]);
    assert_eq!(code, 0, "{err}");
    assert!(files(&hub).iter().any(|file| file.ends_with(".safetensors")));
    assert!(Path::new(&out).join("adapter_model.safetensors").exists());
}

#[test]
fn weights_that_can_never_come_are_told_before_anything_comes() {
    let file = |listing: &mut Value, key: &str, value: Value| {
        let files = listing["siblings"].as_array_mut().unwrap();
        let weights = files.iter_mut().find(|file| file["rfilename"] == "model.safetensors").unwrap();
        weights[key] = value;
    };
    let no_room = hub_of("models/llama", |listing| {
        file(listing, "lfs", json!({"sha256": "0".repeat(64), "size": 1u64 << 60, "pointerSize": 134}));
    });
    let no_weights = hub_of("models/llama", |listing| file(listing, "rfilename", json!("pytorch_model.bin")));
    let temporary = tempfile::tempdir().unwrap();
    let rows = temporary.path().join("rows.json");
    fs::write(&rows, r#"[{"instruction": "a", "output": "b"}]"#).unwrap();
    let (rows, out) = (rows.to_str().unwrap(), temporary.path().join("out"));
    let finetune = ["finetune", "tiny/llama", "--data", rows, "--out_dir", out.to_str().unwrap()];
    for (hub, expected) in [
        (&no_room, "takes 1073741824.00 GiB; free some"),
        (&no_weights, "no *.safetensors (pytorch_model.bin)"),
    ] {
        for words in [&finetune[..], &["download", "tiny/llama"]] {
            let models = tempfile::tempdir().unwrap();
            let (code, _, err) = said(&engraft(&hub.url, models.path(), None, words));
            assert!(code == 2 && err.contains(expected), "{words:?}: {err}");
            assert_eq!(files(hub), [""; 0]);
            // plans and data need none
            let plan = ["plan", "tiny/llama", "--max_seq_length", "64"];
            let (code, _, err) = said(&engraft(&hub.url, models.path(), None, &plan));
            assert_eq!(code, 0, "{err}");
            hub.forget();
        }
    }
    assert!(!out.exists());
}

#[test]
fn of_a_quantised_model_settings_alone_tell_how() {
    let hub = hub_of("quant/llama_bnb4", |_| ());
    let temporary = tempfile::tempdir().unwrap();
    let models = temporary.path().join("models");
    let call = |words: &[&str]| said(&engraft(&hub.url, &models, None, words));
    let plan = ["plan", "tiny/llama", "--max_seq_length", "64", "--quiet", "--json"];
    let (code, before, err) = call(&plan);
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = call(&[&plan[..], &["--quantize", "int8"]].concat());
    assert!(code != 0 && err.contains("--quantize int8: the weights are nf4-dq already"), "{err}");
    if common::gpu().is_some() {
        let rows = temporary.path().join("rows.json");
        fs::write(&rows, r#"[{"instruction": "a", "output": "b"}]"#).unwrap();
        let (rows, out) = (rows.to_str().unwrap(), temporary.path().join("out"));
        let words = ["tiny/llama", "--data", rows, "--data.val_split_fraction", "0", "--out_dir"];
        let words = [&words[..], &[out.to_str().unwrap()]].concat();
        let (code, _, err) = call(&[&["finetune_full"], &words[..]].concat());
        assert!(code != 0 && err.contains("its layers are in nf4-dq, and full training"), "{err}");
        let (code, _, err) = call(&[&["finetune"], &words[..], &["--quantize", "int8"]].concat());
        assert!(code != 0 && err.contains("the weights are nf4-dq already"), "{err}");
    }
    assert!(files(&hub).iter().all(|file| !file.ends_with(".safetensors")), "{:?}", files(&hub));

    // and what they tell is so
    assert_eq!(call(&["download", "tiny/llama"]).0, 0);
    let (code, after, err) = call(&plan);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(before, after);
}
