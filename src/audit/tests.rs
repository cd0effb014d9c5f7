#![allow(clippy::unwrap_used)]

use std::fs;

use super::*;

fn settings(folder: &Path) -> Settings {
    Settings { folder: folder.to_owned(), file_bytes: 1 << 20, files: 4 }
}

/// Writes events numbered from `first`, and ends.
fn write(settings: Settings, numbers: std::ops::Range<u32>) {
    let stop = CancellationToken::new();
    let (audit, writing) = Audit::open(settings, &stop).unwrap();
    for number in numbers {
        audit.record(Event::new("publish", &Identity::User(7)).of(number).within("team"));
    }
    stop.cancel();
    writing();
}

fn problems(folder: &Path, known: Option<(u64, [u8; 32])>) -> Vec<String> {
    let found = verify(folder, known, |_| {}).unwrap();
    found.problems.iter().map(ToString::to_string).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    chain::list(folder).unwrap().into_iter().map(|(_, path)| path).collect()
}

fn lines(folder: &Path) -> (PathBuf, Vec<String>) {
    let file = files(folder).pop().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    (file, text.lines().map(str::to_owned).collect())
}

#[test]
fn a_log_goes_on_after_a_restart_and_over_files() {
    let folder = tempfile::tempdir().unwrap();
    let short = Settings { file_bytes: 300, ..settings(folder.path()) };
    for round in 0..3 {
        write(short.clone(), round * 3..round * 3 + 3);
    }
    let mut seen = Vec::new();
    let found = verify(folder.path(), None, |line| seen.push(line.clone())).unwrap();
    assert_eq!(found.problems, []);
    assert_eq!(found.last - found.first + 1, seen.len() as u64);
    assert!(files(folder.path()).len() <= 4, "the oldest go");
    assert!(found.first > 1 && seen.iter().any(|line| line.event == line::LET_GO), "and say so");
    let last = seen.last().unwrap();
    assert_eq!((&*last.event, &*last.who, &*last.subject), ("publish", "uid 7", "8"));

    // A crash in the middle of a line.
    let (file, _) = lines(folder.path());
    let mut bytes = fs::read(&file).unwrap();
    bytes.extend_from_slice(b"{\"sequence\":10,");
    let end = found.last;
    fs::write(&file, bytes).unwrap();
    assert_eq!(problems(folder.path(), None), [""; 0]);
    write(short, 9..10);
    assert_eq!(problems(folder.path(), None), [""; 0]);
    assert!(verify(folder.path(), None, |_| {}).unwrap().last > end);
    // Whoever takes the oldest file away does not say so.
    fs::remove_file(&files(folder.path())[0]).unwrap();
    assert!(problems(folder.path(), None)[0].contains("taken out"));
}

/// A crash, or a full disk, after a new file was made and before its first line was whole.
#[test]
fn a_file_without_a_whole_line_breaks_no_chain() {
    for torn in ["", "{\"sequence\":4,"] {
        let folder = tempfile::tempdir().unwrap();
        write(settings(folder.path()), 0..3);
        fs::write(chain::name(folder.path(), 4), torn).unwrap();
        write(settings(folder.path()), 3..6);
        assert_eq!(problems(folder.path(), None), [""; 0], "{torn:?}");
        assert_eq!(verify(folder.path(), None, |_| {}).unwrap().last, 6, "{torn:?}");
    }
    // Where the file before it does not end there, lines are missing.
    let folder = tempfile::tempdir().unwrap();
    write(settings(folder.path()), 0..3);
    fs::write(chain::name(folder.path(), 9), "").unwrap();
    write(settings(folder.path()), 3..6);
    assert!(!problems(folder.path(), None).is_empty());
    fs::write(chain::name(folder.path(), u64::MAX), "nonsense\n").unwrap();
    assert!(Audit::open(settings(folder.path()), &CancellationToken::new()).is_err());
}

#[test]
fn what_is_refused_pushes_out_nothing_that_was_done() {
    let folder = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let short = Settings { file_bytes: 4096, files: 2, ..settings(folder.path()) };
    let (audit, writing) = Audit::open(short, &stop).unwrap();
    audit.record(Event::new("create_token", &Identity::User(0)));
    for number in 0..500 {
        audit.record(Event::new(DENIED, &Identity::Anyone).of("x".repeat(128)));
        audit.record(Event::new("publish", &Identity::Anyone).of(number).of_values());
    }
    audit.record(Event::new("revoke_token", &Identity::User(0)));
    stop.cancel();
    writing();
    let (mut deeds, mut others) = (Vec::new(), 0);
    let found = verify(folder.path(), None, |line| match line.event.as_str() {
        "create_token" | "revoke_token" => deeds.push(line.event.clone()),
        _ => others += 1,
    });
    assert_eq!(found.unwrap().problems, []);
    assert_eq!(deeds, ["create_token", "revoke_token"]);
    assert!(others > 0 && others < 200, "{others}: they have bounds of their own");
    // One of them that is changed is told as well.
    let file = files(&folder.path().join("refused")).pop().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replacen("anyone", "nobody", 1)).unwrap();
    assert!(problems(folder.path(), None)[0].starts_with("refused/"));
}

/// What the cluster is told of is on the disk.
#[test]
fn the_head_is_known_once_it_is_synced() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::open(settings(folder.path()), Arc::default()).unwrap();
    let head = writer.head();
    writer.take(Event::new("publish", &Identity::User(7)));
    assert_eq!(head.lock().sequence, 0);
    writer.sync_or_complain();
    assert_eq!(head.lock().sequence, 1);
}

/// Lines behind the one that the cluster knows are no proof that it was theirs.
#[test]
fn a_log_made_up_behind_the_known_line_is_another() {
    let folder = tempfile::tempdir().unwrap();
    write(settings(folder.path()), 0..6);
    let (file, whole) = lines(folder.path());
    let behind = |from: usize| {
        fs::remove_file(files(folder.path()).pop().unwrap()).unwrap();
        let path = chain::name(folder.path(), from as u64);
        fs::write(path, whole[from - 1..].join("\n") + "\n").unwrap();
    };
    let digest = |number: usize| chain::digest(whole[number - 1].as_bytes());
    assert!(verify::has(folder.path(), (6, digest(6))).unwrap());
    assert!(!verify::has(folder.path(), (6, digest(5))).unwrap());
    assert!(!verify::has(folder.path(), (7, digest(6))).unwrap());
    behind(5);
    assert!(!file.exists());
    assert!(verify::has(folder.path(), (4, digest(4))).unwrap(), "the one before names it");
    assert!(!verify::has(folder.path(), (4, digest(3))).unwrap());
    assert!(!verify::has(folder.path(), (3, digest(3))).unwrap());
    assert!(
        problems(folder.path(), Some((3, digest(3)))).iter().any(|told| told.contains("not known"))
    );
}

#[test]
fn every_way_to_change_a_log_is_found() {
    let folder = tempfile::tempdir().unwrap();
    write(settings(folder.path()), 0..6);
    let (file, whole) = lines(folder.path());
    let head = (6, chain::digest(whole[5].as_bytes()));
    assert_eq!(problems(folder.path(), Some(head)), [""; 0]);
    let told = |changed: &[String]| {
        fs::write(&file, changed.join("\n") + "\n").unwrap();
        let problems = problems(folder.path(), Some(head));
        assert!(!problems.is_empty(), "{changed:#?}");
        problems.join("; ")
    };
    for at in 0..6 {
        let mut changed = whole.clone();
        changed[at] = changed[at].replace("uid 7", "uid 8");
        assert!(told(&changed).contains("changed"), "line {at}");
        let mut missing = whole.clone();
        missing.remove(at);
        told(&missing);
        let mut twice = whole.clone();
        twice.insert(at, whole[at].clone());
        told(&twice);
        let mut nonsense = whole.clone();
        nonsense[at] = "nonsense".into();
        assert!(told(&nonsense).contains("no line"), "line {at}");
        if at > 0 {
            let mut swapped = whole.clone();
            swapped.swap(at - 1, at);
            told(&swapped);
        }
    }
    assert!(told(&whole[..4]).contains("cut off"));
    // Without the head nobody can know that.
    fs::write(&file, whole[..4].join("\n") + "\n").unwrap();
    assert_eq!(problems(folder.path(), None), [""; 0]);
    // A whole new chain over the same numbers is not the one that the cluster knows.
    fs::remove_file(&file).unwrap();
    write(settings(folder.path()), 10..20);
    assert!(problems(folder.path(), Some(head))[0].contains("cluster was told"));
}

#[test]
fn what_cannot_be_written_is_counted_and_said_in_the_next_line() {
    let folder = tempfile::tempdir().unwrap();
    let audit = folder.path().join("audit");
    let stop = CancellationToken::new();
    let (log, writing) = Audit::open(settings(&audit), &stop).unwrap();
    // The folder is gone: as a disk that takes nothing.
    fs::remove_dir_all(&audit).unwrap();
    let thread = std::thread::spawn(writing);
    let lost = log.0.as_ref().unwrap().lost.clone();
    log.record(Event::new("publish", &Identity::User(7)));
    while lost.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    fs::create_dir(&audit).unwrap();
    log.record(Event::new("remove", &Identity::User(7)));
    stop.cancel();
    thread.join().unwrap();
    let found = verify(&audit, None, |line| assert_eq!(line.event, "remove")).unwrap();
    assert_eq!((found.first, found.last, found.lost), (1, 1, 1));
}

#[test]
fn an_event_is_bounded() {
    let long = Event::new("pin", &Identity::User(7)).saying("ü".repeat(5000)).bounded();
    assert!(long.detail.len() <= LONGEST);
}

/// Fields are added; what they say is in the line's digest all the same.
#[test]
fn a_line_of_a_version_to_come_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write(settings(folder.path()), 0..1);
    let (file, whole) = lines(folder.path());
    let later = whole[0].replacen('{', "{\"to_come\":7,", 1);
    fs::write(&file, format!("{later}\n")).unwrap();
    write(settings(folder.path()), 1..2);
    let mut events = Vec::new();
    let found = verify(folder.path(), None, |line| events.push(line.subject.clone())).unwrap();
    assert_eq!((found.problems, events), (Vec::new(), vec!["0".to_owned(), "1".to_owned()]));
}
