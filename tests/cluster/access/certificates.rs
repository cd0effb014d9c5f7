//! A client's certificate has the rights of its row.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_certificate_has_the_rights_of_its_row() {
    let mut cluster = TestCluster::start_with(1, required).await;
    let folder = cluster.folder.path().join("ca");
    let certs = |arguments: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"));
        let made = command.arg("certs").args(arguments.split(' ')).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    let dir = folder.display().to_string();
    certs(&format!("init --dir {dir}"));
    certs(&format!("issue server --dir {dir} --out {dir} --name node --host 127.0.0.1"));
    for (name, host) in [("trainer", "trainer.kiln"), ("stranger", "stranger.kiln")] {
        certs(&format!("issue client --dir {dir} --out {dir} --name {name} --host {host}"));
    }
    let file = |name: &str| folder.join(name);
    let admin = token(&cluster.nodes[0], None, &["--role", "admin"]).await;
    let node = &mut cluster.nodes[0];
    node.terminate().await;
    let clients = &mut node.config.tls.clients;
    clients.mode = kiln::net::tls::Mode::Require;
    clients.verify = kiln::net::tls::Verify::Optional;
    (clients.cert, clients.key) = (Some(file("node-server.pem")), Some(file("node-server.key")));
    clients.ca = Some(file("clients-ca.pem"));
    node.config.access.certificates = vec!["trainer.kiln write team".into()];
    node.spawn();
    assert!(node.wait_ready().await);
    let node = &cluster.nodes[0];
    let endpoint = format!("https://{}", node.config.grpc_listen);
    let ask = async |who: Option<&str>, words: &[&str]| {
        let mut arguments: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        arguments.extend(["--ca".into(), format!("{dir}/clients-ca.pem")]);
        if let Some(who) = who {
            arguments.extend(["--cert".into(), format!("{dir}/{who}-client.pem")]);
            arguments.extend(["--cert-key".into(), format!("{dir}/{who}-client.key")]);
        }
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        kiln(&endpoint, None, &arguments).await
    };
    let (code, told) = ask(Some("trainer"), &["status"]).await;
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(told["access"]["caller"], "certificate trainer.kiln", "{told}");
    assert_eq!(told["access"]["role"], "write", "{told}");
    for (who, words, refused) in [
        (None, &["status"][..], "A001"),
        (Some("stranger"), &["status"], "A001"),
        (Some("trainer"), &["ls", "--namespace", "other"], "A002"),
        (Some("trainer"), &["token", "list"], "A002"),
    ] {
        let (code, told) = ask(who, words).await;
        assert_eq!((code, &told["error"]["code"]), (Some(22), &Value::from(refused)), "{told}");
    }

    // Redis in TLS: the certificate's namespace, or that of a token.
    let resp = async |who: Option<&str>, commands: &[&[&str]]| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let pair = who.map(|who| {
            let file = |end: &str| folder.join(format!("{who}-client.{end}"));
            (file("pem"), file("key"))
        });
        let own = pair.as_ref().map(|(cert, key)| (&**cert, &**key));
        let tls = kiln::net::tls::ClientTls::new(&folder.join("clients-ca.pem"), own).unwrap();
        let port = node.config.resp_listen.unwrap().port();
        let mut stream = tls.connect("127.0.0.1", port).await.unwrap();
        let words = commands.iter().copied().chain([&["QUIT"][..]]);
        for words in words {
            stream.write_all(&crate::redis::request(words)).await.unwrap();
        }
        let mut said = Vec::new();
        // Who is told goodbye may be cut off without TLS's own.
        let _ = stream.read_to_end(&mut said).await;
        let said = String::from_utf8(said).unwrap();
        said.split("\r\n")
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let set = ["SET", "name", "value"];
    assert_eq!(resp(Some("trainer"), &[&set, &["DBSIZE"]]).await[..2], ["+OK", ":1"]);
    for nobody in [None, Some("stranger")] {
        let said = resp(nobody, &[&set, &["GET", "name"]]).await;
        assert_eq!(said[..2], ["-NOAUTH", "-NOAUTH"], "{nobody:?}");
    }
    let said = resp(None, &[&["AUTH", "team", &admin], &["GET", "name"]]).await;
    assert_eq!(said[..3], ["+OK", "$5", "value"]);
}
