//! A server on this machine for what is downloaded.

use engraft::hub::HubOptions;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The first byte that is asked for.
    pub fn from(&self) -> usize {
        let range = self.header("Range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        range.map_or(0, |from| from.parse().unwrap())
    }
}

#[derive(Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub cut: Option<usize>,
}

pub fn refuse(status: u16, code: &str, message: &str) -> Reply {
    let headers = [("X-Error-Code", code), ("X-Error-Message", message)];
    let headers = headers.into_iter().filter(|(_, value)| !value.is_empty());
    Reply { status, headers: headers.map(|(n, v)| (n, v.to_owned())).collect(), ..Reply::default() }
}

/// A body from the byte on that was asked for.
pub fn send(request: &Request, body: &[u8]) -> Reply {
    match request.from() {
        0 => Reply { status: 200, body: body.to_vec(), ..Reply::default() },
        from if from >= body.len() => refuse(416, "", ""),
        from => Reply {
            status: 206,
            headers: vec![("Content-Range", format!("bytes {from}-{}/{}", body.len() - 1, body.len()))],
            body: body[from..].to_vec(),
            cut: None,
        },
    }
}

/// A server on a port of its own, and what it was asked.
pub struct Server {
    pub url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&log), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &seen, &*answer));
            }
        });
        Server { url, log }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.log.lock().unwrap().clear();
    }

    pub fn options(&self) -> HubOptions {
        let pause = Duration::from_millis(1);
        HubOptions { endpoint: self.url.clone(), tries: 3, pause, ..HubOptions::default() }
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers = lines.take_while(|line| !line.is_empty());
    let headers = headers.filter_map(|line| line.split_once(": ").map(|(n, v)| (n.to_owned(), v.to_owned())));
    let request = Request { method, path, headers: headers.collect() };
    seen.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", reply.body.len());
    let sent = &reply.body[..reply.cut.unwrap_or(reply.body.len())];
    let sent = if request.method == "HEAD" { &[] } else { sent };
    // a client that has gone is no error here
    let _ = (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(sent));
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file of the listing: `lfs` are the large ones.
pub fn entry(name: &str, content: &[u8], lfs: bool) -> Value {
    let blob = [format!("blob {}\0", content.len()).as_bytes(), content].concat();
    let mut entry = json!({"rfilename": name, "size": content.len(), "blobId": hex(&Sha1::digest(blob))});
    if lfs {
        entry["lfs"] =
            json!({"sha256": hex(&Sha256::digest(content)), "size": content.len(), "pointerSize": 134});
    }
    entry
}
