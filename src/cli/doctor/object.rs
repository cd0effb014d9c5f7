//! The object store: does it take, give back and delete an object.
//!
//! Invariant: the probe's object is deleted, or the check says that it is left.

use std::path::PathBuf;

use kiln::{
    cache::{Blob, ObjectName, ObjectTier, STORE_MARKER},
    config::Config,
    node,
};
use kiln_proto::Digest;
use url::Url;

use super::Check;

const NAME: &str = "object store";

pub(super) async fn check(config: &Config) -> Vec<Check> {
    let Some(url) = config.object.url.clone() else {
        let advice = "artifacts live on the nodes' disks alone; set object.url to keep them";
        return vec![Check::off(NAME, "object.url is not set", advice)];
    };
    // Opening makes the folder and what it is known by: that is for the node to do, and it
    // would hide that nothing is mounted there.
    if let Some(folder) = Url::parse(&url).ok().and_then(|url| folder(&url)) {
        let marker = folder.join(STORE_MARKER);
        match tokio::fs::try_exists(&marker).await {
            Ok(true) => {}
            Ok(false) => {
                let said = format!("{} is no store yet, or is not mounted", folder.display());
                let advice = "mount it, if a node has used it before; kiln serve begins a new one";
                return vec![Check::off(NAME, said, advice)];
            }
            Err(e) => {
                let advice = "name a folder that this user may read and write";
                return vec![Check::problem(NAME, format!("{}: {e}", folder.display()), advice)];
            }
        }
    }
    let advice = "see its address (object.url, object.endpoint), the credentials (AWS_*, or \
                  object.profile), and that they may put, get and delete objects there";
    vec![match probe(config, url.clone()).await {
        Ok(conditional) => {
            let how = if conditional { "create-if-absent" } else { "plain writes only" };
            Check::ok(NAME, format!("{url}: an object was written ({how}), read and deleted"))
        }
        Err(why) => Check::problem(NAME, format!("{url}: {why}"), advice),
    }]
}

fn folder(url: &Url) -> Option<PathBuf> {
    (url.scheme() == "file").then(|| url.to_file_path().ok()).flatten()
}

/// Whether the store takes "create if absent".
async fn probe(config: &Config, url: String) -> Result<bool, String> {
    let settings = node::object_settings(config).map_err(|e| e.to_string())?;
    let store = ObjectTier::open(url, settings).await.map_err(|e| e.to_string())?;
    let mut unique = [0; 32];
    getrandom::fill(&mut unique).map_err(|e| e.to_string())?;
    let blob = Blob::copy_of(&unique).map_err(|e| e.to_string())?;
    // No pack that an index names, and what is left of it would be collected as an orphan.
    let name = ObjectName { pack: Digest::of(&unique), generation: u64::MAX };
    store.put(&name, &blob).await.map_err(|e| format!("write an object: {e}"))?;
    let found = match store.stat(&name).await {
        Ok(Some(found)) if found.size == unique.len() as u64 => read(&store, &name, &unique).await,
        Ok(_) => Err("what was written is not there".to_owned()),
        Err(e) => Err(format!("find an object: {e}")),
    };
    let deleted = store.delete(&name).await;
    found?;
    deleted.map_err(|e| format!("delete an object, and {name} is left: {e}"))?;
    Ok(store.is_conditional())
}

async fn read(store: &ObjectTier, name: &ObjectName, expected: &[u8]) -> Result<(), String> {
    let size = expected.len() as u64;
    let mut writer = kiln::cache::BlobWriter::with_size(size).map_err(|e| e.to_string())?;
    match store.fill(name, &mut writer).await {
        Ok(true) => {}
        Ok(false) => return Err("what was written cannot be read".into()),
        Err(e) => return Err(format!("read an object: {e}")),
    }
    writer.finish_as(name.pack).map(drop).map_err(|e| format!("what was read differs: {e}"))
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    #[tokio::test]
    async fn a_store_is_tried_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = super::super::settings(folder.path());
        assert_eq!(check(&config).await[0].state, State::Off);
        let store = folder.path().join("l3");
        config.object.url = Some(format!("file://{}", store.display()));
        assert_eq!(check(&config).await[0].state, State::Off, "it is not there yet");
        assert!(!store.exists());
        std::fs::create_dir(&store).unwrap();
        assert_eq!(check(&config).await[0].state, State::Off, "perhaps it is not mounted");
        assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0);
        std::fs::write(store.join(STORE_MARKER), "").unwrap();
        let checks = check(&config).await;
        assert_eq!(checks[0].state, State::Ok, "{checks:?}");
        let mut folders = vec![store];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => assert_eq!(entry.file_name(), STORE_MARKER),
                }
            }
        }
    }

    #[tokio::test]
    async fn a_store_that_is_away_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = super::super::settings(folder.path());
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        config.object.url = Some(format!("file://{}", file.display()));
        let checks = check(&config).await;
        assert_eq!(checks[0].state, State::Problem, "{checks:?}");
    }
}
