//! Server processes of the tests' own: none outlives the test process, however that ends, and
//! nothing else is ever signaled. Needs Linux, for `/proc`.

use std::fs::{self, File, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing takes this long, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Whether a test must fail, instead of being skipped, if the server that it needs is not
/// installed.
pub fn required() -> bool {
    std::env::var_os("IDEMPOTENCY_REQUIRE_SERVERS").is_some_and(|value| value == "1")
}

/// Whether installed servers must not be found: to test on any machine how a bare machine behaves.
pub fn hidden() -> bool {
    std::env::var_os("IDEMPOTENCY_HIDE_SERVERS").is_some_and(|value| value == "1")
}

/// Handles a server that is not installed: prints that, or panics if servers are required.
pub fn missing(server: &str) {
    assert!(
        !required(),
        "{server} is not installed, and IDEMPOTENCY_REQUIRE_SERVERS=1 requires it"
    );
    eprintln!("{server} is not installed: tests that need it are skipped");
}

/// The path of a program in `PATH`. Its symbolic links are not followed, because some programs do
/// different things under different names.
pub fn in_path(program: &str) -> Option<PathBuf> {
    if hidden() {
        return None;
    }
    std::env::split_paths(&std::env::var_os("PATH")?).find_map(|directory| {
        let path = directory.join(program);
        let metadata = path.metadata().ok()?;
        (metadata.is_file() && metadata.mode() & 0o111 != 0).then_some(path)
    })
}

/// A port that is free now. It is below the ports that the kernel gives to outgoing connections, so
/// it is probably still free when a killed server returns to it. The number 10000 above it, where a
/// Redis cluster's node has its bus, is a valid port as well.
pub fn free_port() -> u16 {
    for attempt in 0..1000 {
        let port = 15_000 + u16::try_from(RandomState::new().hash_one(attempt) % 17_000).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}

/// The user for running programs that refuse to run as root.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// The first of these users that exists, if this process runs as root.
    pub fn instead_of_root(names: &[&str]) -> Option<Self> {
        if fs::metadata("/proc/self").ok()?.uid() != 0 {
            return None;
        }
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let found = names.iter().find_map(|name| {
            users.lines().find_map(|line| {
                let mut fields = line.split(':');
                (fields.next() == Some(name)).then_some(())?;
                Some(Self {
                    uid: fields.nth(1)?.parse().ok()?,
                    gid: fields.next()?.parse().ok()?,
                })
            })
        });
        Some(found.unwrap_or_else(|| panic!("none of the users {names:?} exists")))
    }
}

/// A place for files that need not survive the machine. It is in memory if there is room for many
/// servers, because making a database's hundreds of files takes a second on some disks.
pub fn in_memory() -> PathBuf {
    const ENOUGH_KIB: u64 = 2 * 1024 * 1024;
    static PLACE: LazyLock<PathBuf> = LazyLock::new(|| {
        let memory = Path::new("/dev/shm");
        let free = || -> Option<u64> {
            let df = Command::new("df").arg("-Pk").arg(memory).output().ok()?;
            let table = String::from_utf8(df.stdout).ok()?;
            table.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()
        };
        if free().is_some_and(|free| free >= ENOUGH_KIB) {
            memory.to_owned()
        } else {
            on_disk()
        }
    });
    PLACE.clone()
}

/// A place for temporary files.
pub fn on_disk() -> PathBuf {
    std::env::temp_dir()
}

/// A new private directory in this place, owned by the user.
pub fn scratch(place: &Path, name: &str, user: Option<User>) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new().hash_one(number) & 0xffff_ffff;
    let path = place.join(format!("{name}-{}-{random:x}", std::process::id()));
    fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    give(&path, user);
    path
}

/// Gives the user a file.
pub fn give(path: &Path, user: Option<User>) {
    if let Some(user) = user {
        chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}

/// Copies a directory with its contents, and gives the copy to the user.
pub fn copy(from: &Path, to: &Path, user: Option<User>) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to, user)?;
        } else {
            fs::copy(entry.path(), &to)?;
            give(&to, user);
        }
    }
    fs::set_permissions(to, from.metadata()?.permissions())?;
    give(to, user);
    Ok(())
}

/// A command that runs as the user, separate from this process's terminal, output and group.
/// Whatever ends the tests leaves the command to the [`Watchdog`].
pub fn command(program: &Path, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).process_group(0);
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// Runs a command to its end. Panics with its output if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{:?}: {}\n{}",
        command.get_program(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Sends a signal (`"STOP"`, `"KILL"`, …) to processes. Processes that have already ended receive
/// nothing.
///
/// A caller passes the ID of a child that it has not waited for, or of that child's children while
/// the child is stopped. None of these IDs can have passed to another process.
pub fn signal(name: &str, processes: &[u32]) {
    if !processes.is_empty() {
        // The shell's own `kill`, because the program of that name is not installed everywhere.
        Command::new("sh")
            .args(["-c", r#"kill -"$0" "$@" 2>/dev/null"#, name])
            .args(processes.iter().map(u32::to_string))
            .stdin(Stdio::null())
            .status()
            .unwrap();
    }
}

/// The state and the parent of a process.
fn stat(process: &str) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, can contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The processes whose parent is this one.
pub fn children(parent: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let process = entry.ok()?.file_name().into_string().ok()?;
            let number = process.parse().ok()?;
            (stat(&process)?.1 == parent).then_some(number)
        })
        .collect()
}

/// Whether a process runs, stopped or not.
pub fn alive(process: u32) -> bool {
    stat(&process.to_string()).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// Stops a child and its children, and returns the children. When it returns, none of them runs.
pub fn stop(child: &Child) -> Vec<u32> {
    let halt = |processes: &[u32]| {
        signal("STOP", processes);
        for process in processes {
            wait_until("the process stops", || {
                stat(&process.to_string()).is_none_or(|(state, _)| matches!(state, 'T' | 't' | 'Z' | 'X'))
            });
        }
    };
    // The parent is first, so that it cannot start another child.
    halt(&[child.id()]);
    let children = children(child.id());
    halt(&children);
    children
}

/// Lets a stopped child and its children continue.
pub fn resume(child: &Child) {
    let mut processes = children(child.id());
    processes.push(child.id());
    signal("CONT", &processes);
}

/// Kills a child and its children, which cannot prevent it, and waits until they are gone.
pub fn kill(child: &mut Child) {
    let mut processes = stop(child);
    processes.push(child.id());
    signal("KILL", &processes);
    child.wait().unwrap();
    for process in processes {
        wait_until("the process is gone", || !alive(process));
    }
}

/// Asks repeatedly until the answer is yes.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "too late: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Ends a server and removes its directory when this value is dropped, or when the process that
/// holds this value ends, even by `SIGKILL`.
///
/// It is a shell that reads a pipe from this process and acts when the pipe ends. Statics are not
/// dropped, so a server that tests share needs this even if everything goes well.
#[derive(Debug)]
pub struct Watchdog {
    shell: Child,
    pipe: Option<ChildStdin>,
}

/// `$0` is the directory, `$1` the signal that ends the server at once. The lines of the input are
/// the server's process number, or nothing while it does not run; it is signaled only if its
/// command line names the directory, or if that is where it works.
const WATCH: &str = r#"
trap '' HUP INT TERM
pid=
while read -r line; do pid=$line; done
names() { grep -qF -- "$0" "/proc/$pid/cmdline" 2>/dev/null; }
runs() { [ -n "$pid" ] && { names || [ "/proc/$pid/cwd" -ef "$0" ]; }; }
if runs; then
    kill -"$1" "$pid"
    # It and its children may be stopped.
    kill -CONT "$pid" $(cat "/proc/$pid/task/$pid/children")
    tries=0
    while runs && [ "$tries" -lt 200 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
    if runs; then kill -KILL "$pid"; fi
fi
rm -rf -- "$0" || { sleep 1; rm -rf -- "$0"; }
"#;

impl Watchdog {
    /// Watches over a directory, and over the server that is to come.
    pub fn new(directory: &Path, signal: &str) -> Self {
        let mut shell = command(Path::new("sh"), None)
            .args(["-c", WATCH])
            .arg(directory)
            .arg(signal)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pipe = shell.stdin.take();
        Self { shell, pipe }
    }

    /// Reports that the server now runs as this process, or does not run at all.
    ///
    /// Its command line must name the directory, or the directory must be its working directory.
    pub fn watch(&mut self, server: Option<&Child>) {
        let line = server.map_or_else(String::new, |server| server.id().to_string());
        writeln!(self.pipe.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // Whatever error occurred, there is nothing more to do.
        let _ = self.shell.wait();
    }
}

/// Locks a file against other processes, until the value returned is dropped.
pub fn lock(path: &Path) -> File {
    let file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.lock().unwrap();
    file
}
