//! The walk of the example's README: every command is run as it stands, and what it prints is compared.
//!
//! `WALK=write` puts what was printed into the README.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::directory::Directory;
use crate::support::example::{program, without_options};
use crate::support::servers::process::free_port;
use crate::support::wait::eventually;

fn readme() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/identity_verification/README.md")
}

/// A block of the page between two fences.
struct Block {
    language: String,
    text: String,
}

/// The page's blocks, with the prose between them: as many proses as blocks, and one more.
fn blocks(page: &str) -> (Vec<String>, Vec<Block>) {
    let (mut proses, mut blocks) = (vec![String::new()], Vec::new());
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push(Block {
                language: language.to_owned(),
                text: text.join("\n"),
            });
            proses.push(String::new());
        } else {
            let prose = proses.last_mut().unwrap();
            prose.push_str(line);
            prose.push('\n');
        }
    }
    (proses, blocks)
}

/// The same text for the same course of events: ids are numbered as they appear, and times left out.
#[derive(Default)]
struct Normal(HashMap<String, String>);

impl Normal {
    fn of(&mut self, text: &str) -> String {
        let lines = text.lines().map(str::trim_end);
        let lines: Vec<_> = lines.map(|line| self.line(line)).collect();
        lines.join("\n").trim().to_owned()
    }

    fn line(&mut self, line: &str) -> String {
        if line.starts_with("date: ") {
            return "date: (a time)".to_owned();
        }
        let is_in_word = |character: char| character.is_ascii_alphanumeric() || "_-:.".contains(character);
        let mut normal = String::new();
        let mut rest = line;
        while let Some(start) = rest.find(is_in_word) {
            normal.push_str(&rest[..start]);
            rest = &rest[start..];
            let end = rest.find(|character| !is_in_word(character)).unwrap_or(rest.len());
            normal.push_str(&self.word(&rest[..end]));
            rest = &rest[end..];
        }
        normal + rest
    }

    fn word(&mut self, word: &str) -> String {
        let is_time = word.len() > 19 && word.as_bytes()[4] == b'-' && word.as_bytes()[10] == b'T';
        if is_time {
            return "(a time)".to_owned();
        }
        for kind in ["vs_", "evt_", "urn:uuid:"] {
            if word.starts_with(kind) && word.len() >= kind.len() + 32 {
                let number = self.0.len() + 1;
                let known = self.0.entry(word.to_owned());
                return known.or_insert_with(|| format!("{kind}({number})")).clone();
            }
        }
        word.to_owned()
    }
}

/// Two terminals: what runs in them ends with this value.
struct Terminals {
    directory: Directory,
    path: OsString,
    ports: [u16; 2],
    servers: Vec<Child>,
}

impl Drop for Terminals {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Terminals {
    fn new() -> Self {
        let directory = Directory::new();
        let tools = directory.path("bin");
        fs::create_dir(&tools).unwrap();
        // What Cargo would run, without building it.
        let shim = format!(
            "#!/bin/sh\n[ \"$1 $2 $3\" = 'run --example identity_verification' ] || exit 64\nshift 3\n\
             [ \"$1\" = -- ] && shift\nexec '{}' \"$@\"\n",
            program("identity_verification").display()
        );
        fs::write(tools.join("cargo"), shim).unwrap();
        let made = Command::new("chmod").arg("755").arg(tools.join("cargo")).status();
        assert!(made.unwrap().success());
        let mut path = tools.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        Self {
            directory,
            path,
            ports: [free_port(), free_port()],
            servers: Vec::new(),
        }
    }

    fn command(&self, block: &str) -> Command {
        let mut command = Command::new("bash");
        let block = block
            .replace("127.0.0.1:3000", &format!("127.0.0.1:{}", self.ports[0]))
            .replace("127.0.0.1:3001", &format!("127.0.0.1:{}", self.ports[1]));
        without_options(&mut command)
            .args(["-c", &block])
            .current_dir(self.directory.path("."))
            .env("PATH", &self.path)
            .env("IDV_LISTEN", format!("127.0.0.1:{}", self.ports[0]))
            .stdin(Stdio::null());
        command
    }

    /// Starts a server and waits until it answers.
    async fn start(&mut self, block: &str) {
        // So that the shell is the server in the end, and can be ended.
        let block = block.replace("cargo run", "exec cargo run");
        let server = self.command(&block).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.servers.push(server.unwrap());
        let port = self.ports[usize::from(block.contains("127.0.0.1:3001 "))];
        eventually("the server answers", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
    }

    fn stop(&mut self) {
        for mut server in self.servers.drain(..) {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    fn run(&self, block: &str) -> String {
        let output = self.command(block).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// What each block of commands printed, if it is followed by what it is to print.
async fn walk(blocks: &[Block]) -> Vec<(usize, String)> {
    let mut terminals = Terminals::new();
    let mut printed = Vec::new();
    let mut was_start = false;
    for (number, block) in blocks.iter().enumerate() {
        if block.language != "sh" {
            continue;
        }
        let is_start = block.text.contains("cargo run");
        if is_start {
            if !was_start {
                terminals.stop();
            }
            terminals.start(&block.text).await;
        } else {
            let expected = blocks.get(number + 1).filter(|next| next.language != "sh");
            let mut output = terminals.run(&block.text);
            if block.text.contains("/v1/webhooks/events") {
                // Events are sent in the background.
                eventually("the event is there", async || {
                    output = terminals.run(&block.text);
                    output.contains("evt_")
                })
                .await;
            }
            match expected {
                Some(_) => printed.push((number + 1, output)),
                None => assert_eq!(output, "", "{}", block.text),
            }
        }
        was_start = is_start;
    }
    printed
}

fn differences(blocks: &[Block], printed: &[(usize, String)]) -> Vec<String> {
    let (mut expected, mut found) = (Normal::default(), Normal::default());
    let pairs = printed.iter().map(|(number, output)| {
        let block = &blocks[*number];
        (expected.of(&block.text), found.of(output))
    });
    pairs
        .filter(|(expected, found)| expected != found)
        .map(|(expected, found)| format!("the README says\n{expected}\nand the command printed\n{found}\n"))
        .collect()
}

#[tokio::test]
async fn every_command_of_the_walk_prints_what_the_readme_says() {
    if crate::support::servers::process::in_path("curl").is_none() {
        crate::support::servers::process::missing("curl");
        return;
    }
    let page = fs::read_to_string(readme()).unwrap();
    let (proses, mut blocks) = blocks(&page);
    if std::env::var_os("WALK").is_some_and(|walk| walk == "write") {
        for (number, output) in walk(&blocks).await {
            let lines: Vec<_> = output.lines().map(str::trim_end).collect();
            blocks[number].text = lines.join("\n").trim().to_owned();
        }
        let mut page = proses[0].clone();
        for (block, prose) in blocks.iter().zip(&proses[1..]) {
            page += &format!("```{}\n{}\n```\n{prose}", block.language, block.text);
        }
        fs::write(readme(), page).unwrap();
        return;
    }
    assert!(blocks.len() > 20, "there is a walk");
    // In one place the walk is a race of a slow request with the next command. On a machine that stands
    // still for a second the request wins, and the walk is gone again.
    let mut found = Vec::new();
    for _ in 0..5 {
        found = differences(&blocks, &walk(&blocks).await);
        if found.is_empty() {
            return;
        }
    }
    panic!("{}", found.join("\n"));
}

#[test]
fn a_walk_that_went_another_way_is_noticed() {
    let normal = |text: &str| Normal::default().of(text);
    let id = |end: char| format!("vs_8a6f99da0b9240dd93e1fcc7788b4ac{end}");
    let twice = |first: char, second: char| format!("{{\"id\":\"{}\"}}\n{}", id(first), id(second));
    assert_eq!(normal(&twice('a', 'a')), normal(&twice('b', 'b')));
    assert_ne!(normal(&twice('a', 'a')), normal(&twice('a', 'b')), "another session");
    assert_eq!(normal("date: Tue\r\nx"), normal("date: Wed\nx"));
    assert_eq!(
        normal("\"created_at\":\"2026-11-24T04:21:17.625Z\""),
        normal("\"created_at\":\"2026-11-25T04:21:17.625Z\"")
    );
    assert_ne!(normal("HTTP/1.1 201 Created"), normal("HTTP/1.1 200 OK"));
}
