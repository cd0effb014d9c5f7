//! `kiln certs`: files that it makes once, and those of a node that it keeps in force.

use std::os::unix::fs::PermissionsExt;

use tokio::io::AsyncBufReadExt;
use x509_parser::extensions::ParsedExtension;

use super::*;

/// The identifier of the key that signed the certificate at `path`, or of its own key.
fn key_id(path: &Path, own: bool) -> Vec<u8> {
    let pem = std::fs::read(path).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let found = certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) if own => Some(id.0.to_vec()),
        ParsedExtension::AuthorityKeyIdentifier(id) if !own => {
            Some(id.key_identifier.as_ref()?.0.to_vec())
        }
        _ => None,
    });
    found.expect("an identifier")
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_beside_a_node_follow_their_authorities() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let authorities = ["first", "second"].map(|name| Authority::new(at(name)));
    std::fs::create_dir(at("ca")).unwrap();
    let put = |authority: &Authority, end: &str| {
        for name in ["members-ca", "clients-ca"].map(|name| format!("{name}.{end}")) {
            std::fs::copy(authority.0.join(&name), at("ca").join(&name)).unwrap();
        }
    };
    let signed_by = |authority: &Authority| {
        [("member", "members-ca"), ("server", "clients-ca")].iter().all(|(of, ca)| {
            let certificate = at("out").join(format!("node-{of}.pem"));
            key_id(&certificate, false) == key_id(&authority.0.join(format!("{ca}.pem")), true)
        })
    };
    put(&authorities[0], "pem");
    put(&authorities[0], "key");
    let [ca, out, data] = ["ca", "out", "data"].map(|name| at(name).display().to_string());
    let arguments = format!("node --dir {ca} --out {out} --data-dir {data} --host 127.0.0.1");
    // A pod's first container may run more than once.
    for _ in 0..2 {
        let made = certs(&format!("{arguments} --once"));
        assert!(made.status.success(), "{made:?}");
    }
    assert!(signed_by(&authorities[0]));
    let key = std::fs::metadata(at("out").join("node-member.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    let mut beside = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
    beside.arg("certs").args(arguments.split(' ')).kill_on_drop(true);
    beside.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut beside = beside.spawn().unwrap();
    let mut line = String::new();
    // It signs when it starts; the last file is the server's key.
    let mut written = tokio::io::BufReader::new(beside.stdout.take().unwrap());
    while !line.contains("node-server.key") {
        line.clear();
        assert_ne!(written.read_line(&mut line).await.unwrap(), 0, "it ended");
    }
    line.clear();
    // What does not belong together signs nothing, and is told.
    put(&authorities[1], "pem");
    let mut told = tokio::io::BufReader::new(beside.stderr.take().unwrap());
    told.read_line(&mut line).await.unwrap();
    assert!(line.contains("not that of its first certificate"), "{line}");
    assert!(signed_by(&authorities[0]), "the old ones stay");
    put(&authorities[1], "key");
    eventually("certificates of the other authority", async || {
        signed_by(&authorities[1]).then_some(())
    })
    .await;
    let process = rustix::process::Pid::from_raw(beside.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    assert!(beside.wait().await.unwrap().success());
}

#[test]
fn certificates_are_private_and_overwrite_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path().join("ca"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let (_, key) = authority.member("one", "");
    for key in [key.clone(), authority.0.join("members-ca.key"), authority.0.join("clients-ca.key")]
    {
        assert_eq!(mode(&key), 0o600, "{key:?}");
    }
    let before = std::fs::read(&key).unwrap();
    let dir = authority.0.display();
    for again in [
        format!("init --dir {dir}"),
        format!("issue member --dir {dir} --out {dir} --name one --host a"),
    ] {
        let refused = certs(&again);
        assert_eq!(refused.status.code(), Some(21), "{refused:?}");
    }
    assert_eq!(std::fs::read(&key).unwrap(), before);
    for wrong in [
        "issue member --dir D --out O --name ../x --host a",
        "issue server --dir D --out O --name x",
    ] {
        assert_eq!(certs(wrong).status.code(), Some(2), "{wrong}");
    }
}
