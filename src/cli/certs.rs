//! `kiln certs`: certificates for a small set-up, of authorities of its own.
//!
//! Invariant: no file is overwritten, but those of a node that [`node`] keeps in force; a
//! private key is its owner's alone from the moment it exists. Members and clients have
//! different authorities.

mod issue;
mod node;

use std::{
    fs::{OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use kiln::net::tls::Identity;

use self::{
    issue::{Purpose, authority, issue},
    node::Node,
};
use super::{CliError, output};

const EXAMPLES: &str = "\
Examples:
  kiln certs init --dir /etc/kiln/ca
  kiln certs issue member --dir /etc/kiln/ca --out . --name node-1 --host node-1.example.com
  kiln certs issue server --dir /etc/kiln/ca --out . --name node-1 --host node-1.example.com
  kiln certs issue client --dir /etc/kiln/ca --out . --name ada
  kiln certs node --dir /ca --out /certs --data-dir /var/lib/kiln --host kiln-0.kiln-voters.kiln.svc

Keep the folder of `init` off the nodes: whoever has its keys can be a member. `kiln certs node`
is for the containers of a pod that start before and run beside the node's own.";

/// Make certificates: authorities for members and for clients, and what they sign.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Certs {
    #[command(subcommand)]
    action: Action,
    /// Print JSON, one object a line; errors too.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make the two authorities.
    Init(Init),
    /// Sign a certificate.
    Issue(Issue),
    /// Sign a node's certificates for both audiences, and go on: anew after a third of their
    /// days, and whenever an authority changes.
    Node(Node),
}

#[derive(Debug, Args)]
struct Init {
    /// Folder for the authorities; it is made.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Days that they are good for.
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

#[derive(Debug, Args)]
struct Issue {
    /// For whom: a node among members, a node towards clients, or a client.
    #[arg(value_enum)]
    of: Kind,
    /// Folder of the authorities, as `kiln certs init` made it.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Folder for the certificate and its key; it is made.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Name of the files, and of the subject.
    #[arg(long, value_name = "NAME", value_parser = file_name)]
    name: String,
    /// Host name or IP address under which it is reached. May be repeated.
    #[arg(long = "host", value_name = "HOST", value_delimiter = ',')]
    hosts: Vec<String>,
    /// Id of the node: others refuse to take the certificate for another node.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    node: Option<u64>,
    /// Data folder of the node: binds the certificate to the key with which it signs, which
    /// is made there if the node has not run yet.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Days that it is good for.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Member,
    Server,
    Client,
}

impl Kind {
    const fn audience(self) -> &'static str {
        match self {
            Self::Member => MEMBERS,
            Self::Server | Self::Client => CLIENTS,
        }
    }

    const fn purpose(self) -> Purpose {
        match self {
            Self::Member => Purpose::Both,
            Self::Server => Purpose::Server,
            Self::Client => Purpose::Client,
        }
    }
}

const MEMBERS: &str = "members-ca";
const CLIENTS: &str = "clients-ca";

/// Its name becomes a file's.
fn file_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !text.is_empty() && text.len() <= 64 && text.chars().all(plain) && !text.starts_with('.')
    {
        true => Ok(text.to_owned()),
        false => Err("a name has at most 64 letters, digits, dots, dashes and underscores".into()),
    }
}

impl Certs {
    pub(crate) fn run(self) -> Result<(), CliError> {
        match &self.action {
            Action::Init(init) => tell(self.json, &init.run()?),
            Action::Issue(issue) => tell(self.json, &issue.run()?),
            Action::Node(node) => node.run(self.json),
        }
    }
}

fn tell(json: bool, written: &[PathBuf]) -> Result<(), CliError> {
    if json {
        let written: Vec<_> = written.iter().map(|path| path.display().to_string()).collect();
        return output::json(&serde_json::json!({ "written": written }));
    }
    written.iter().try_for_each(|path| output::line(format!("wrote {}", path.display())))
}

impl Init {
    fn run(&self) -> Result<Vec<PathBuf>, CliError> {
        let pairs = [MEMBERS, CLIENTS].map(|name| (self.dir.join(name), name));
        let pairs = pairs.map(|(stem, name)| (Pair::at(&stem), name));
        pairs.iter().try_for_each(|(pair, _)| pair.check())?;
        make_folder(&self.dir)?;
        let mut written = Vec::new();
        for (pair, name) in pairs {
            let made =
                authority(&format!("kiln {name}"), self.days).context("make an authority")?;
            written.extend(pair.write(&made)?);
        }
        Ok(written)
    }
}

impl Issue {
    fn run(&self) -> Result<Vec<PathBuf>, CliError> {
        let names_a_node = self.node.is_some() || self.data_dir.is_some();
        match self.of {
            Kind::Member if self.hosts.is_empty() && !names_a_node => {
                return Err(CliError::Usage(
                    "a member's certificate names its --host, its --node or its --data-dir".into(),
                ));
            }
            Kind::Server if self.hosts.is_empty() => {
                return Err(CliError::Usage("a server's certificate names its --host".into()));
            }
            Kind::Server | Kind::Client if names_a_node => {
                return Err(CliError::Usage(
                    "--node and --data-dir are for a member's certificate".into(),
                ));
            }
            _ => {}
        }
        let pair = Pair::at(&self.out.join(format!("{}-{}", self.name, self.suffix())));
        pair.check()?;
        let signer = Pair::at(&self.dir.join(self.of.audience())).read()?;
        let key = self.data_dir.as_ref().map(|data| {
            make_folder(data)?;
            let name = kiln::identity::name(data).context("the node's key")?;
            Ok::<_, anyhow::Error>(name.to_bytes())
        });
        let identity = Identity { node: self.node, key: key.transpose()? };
        let made = issue(
            (&signer.cert, &signer.key),
            &self.name,
            &self.hosts,
            identity.to_uri(),
            self.of.purpose(),
            self.days,
        );
        let made = made.context("sign a certificate")?;
        make_folder(&self.out)?;
        pair.write(&made)
    }

    const fn suffix(&self) -> &'static str {
        match self.of {
            Kind::Member => "member",
            Kind::Server => "server",
            Kind::Client => "client",
        }
    }
}

fn make_folder(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}

/// A certificate and its key, in PEM.
#[derive(PartialEq, Eq)]
struct Made {
    cert: String,
    key: String,
}

/// Where they lie.
struct Pair {
    cert: PathBuf,
    key: PathBuf,
}

impl Pair {
    fn at(stem: &Path) -> Self {
        let with = |end: &str| PathBuf::from(format!("{}{end}", stem.display()));
        Self { cert: with(".pem"), key: with(".key") }
    }

    fn check(&self) -> Result<(), CliError> {
        match [&self.cert, &self.key].into_iter().find(|path| path.symlink_metadata().is_ok()) {
            None => Ok(()),
            Some(path) => Err(CliError::Refused(format!(
                "{} exists: nothing is overwritten; move it away first",
                path.display()
            ))),
        }
    }

    /// An authority's.
    fn read(&self) -> anyhow::Result<Made> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("read {}, which `kiln certs init` makes", path.display()))
        };
        Ok(Made { cert: read(&self.cert)?, key: read(&self.key)? })
    }

    /// Puts `made` in the place of what is there, each file as a whole and the key first.
    fn replace(self, made: &Made) -> anyhow::Result<Vec<PathBuf>> {
        for (path, text, mode) in [(&self.key, &made.key, 0o600), (&self.cert, &made.cert, 0o644)] {
            let folder = path.parent().unwrap_or(Path::new("."));
            // Made as its owner's alone.
            let replaced = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.as_file().set_permissions(Permissions::from_mode(mode))?;
                file.as_file().sync_all()?;
                file.persist(path).map_err(|failed| failed.error)
            });
            replaced.with_context(|| format!("write {}", path.display()))?;
        }
        Ok(vec![self.cert, self.key])
    }

    /// The key first: a certificate without its key is of no use.
    fn write(self, made: &Made) -> Result<Vec<PathBuf>, CliError> {
        for (path, text, mode) in [(&self.key, &made.key, 0o600), (&self.cert, &made.cert, 0o644)] {
            let mut file = OpenOptions::new();
            file.write(true).create_new(true).mode(mode);
            let written = file.open(path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            });
            written.with_context(|| format!("write {}", path.display()))?;
        }
        Ok(vec![self.cert, self.key])
    }
}
