//! What a manifest claims beside its key: tenant, toolchain, target.
//!
//! Invariant: a claim that passes [`check`] is the one that the key was made from,
//! so an entry is never listed, routed or handed out as something that its key is not.

use crate::{
    Component, Components, Fingerprint, KeyField, Manifest, Target,
    component::{FINGERPRINT, NAMESPACE, TARGET},
    target::BinaryKind,
};

/// The field that every fingerprint's component begins with.
const COMPILER: &str = "compiler";

/// The components that say which toolchain, target and tenant a key is for.
pub fn claimed_components(
    fingerprint: &Fingerprint,
    target: &Target,
    namespace: &str,
) -> [Component; 3] {
    let mut versions = vec![KeyField::new(COMPILER, fingerprint.compiler.as_str())];
    let tools = fingerprint.versions.iter();
    versions.extend(tools.map(|(tool, version)| KeyField::new(tool.as_str(), version.as_str())));
    let target = vec![
        KeyField::new("arch", target.to_string()),
        KeyField::new("min_driver", target.min_driver.to_string()),
    ];
    let tenant = vec![KeyField::new("namespace", namespace)];
    [
        Component::new(FINGERPRINT, versions),
        Component::new(TARGET, target),
        Component::new(NAMESPACE, tenant),
    ]
}

/// Whether namespace, fingerprint and target of `manifest` are those of its key.
pub(crate) fn check(manifest: &Manifest) -> Result<(), String> {
    let components = &manifest.components;
    let tenant = only(components, NAMESPACE)?.ok_or("its key names no namespace")?;
    let stated = one_field(tenant, "namespace")?;
    if stated != Some(KeyField::new("", manifest.namespace.as_str()).value.as_str()) {
        return Err("its namespace is not its key's".into());
    }
    let toolchain = only(components, FINGERPRINT)?.ok_or("its key names no fingerprint")?;
    check_fingerprint(&manifest.fingerprint, toolchain)?;
    check_target(&manifest.target, only(components, TARGET)?)
}

fn check_fingerprint(claimed: &Fingerprint, component: &Component) -> Result<(), String> {
    let differs = |what: &str| Err(format!("its fingerprint is not its key's: {what}"));
    if one_field(component, COMPILER)? != Some(claimed.compiler.as_str()) {
        return differs(COMPILER);
    }
    for (tool, version) in &claimed.versions {
        match one_field(component, tool)? {
            Some(stated) if stated == KeyField::new("", version.as_str()).value => {}
            // Keys of other tools, which name the compiler alone: a tool hashes its
            // version into a name of its own, and says it for people to read.
            None if component.fields.len() == 1 => {}
            _ => return differs(tool),
        }
    }
    // What follows from other fields (generated source, headers) may be the key's alone.
    let stated = component.fields.iter().filter(|field| !field.derived && field.name != COMPILER);
    for field in stated {
        if !claimed.versions.contains_key(&field.name) {
            return differs(&field.name);
        }
    }
    Ok(())
}

fn check_target(claimed: &Target, component: Option<&Component>) -> Result<(), String> {
    let differs = || Err("its target is not its key's".to_owned());
    let Some(component) = component else {
        // Other tools hash what they run on into a name of their own.
        let files = claimed.kind == BinaryKind::Files;
        return if files { Ok(()) } else { Err("its key names no target".into()) };
    };
    if let Some(arch) = one_field(component, "arch")? {
        let driver = one_field(component, "min_driver")?.unwrap_or("0");
        let same = arch == claimed.to_string() && driver == claimed.min_driver.to_string();
        return if same { Ok(()) } else { differs() };
    }
    // Another tool's text: a target, or GPUs that no single target describes.
    let stated = one_field(component, "target")?.ok_or("its key names no target")?;
    let stated: Target = stated.parse().unwrap_or(Target::any());
    if *claimed == stated { Ok(()) } else { differs() }
}

/// The component called `name`; two of them could claim two things.
fn only<'a>(components: &'a Components, name: &str) -> Result<Option<&'a Component>, String> {
    let mut found = components.iter().filter(|component| component.name == name);
    let first = found.next();
    match found.next() {
        None => Ok(first),
        Some(_) => Err(format!("its key has two components {name}")),
    }
}

/// The value of the field called `name`.
fn one_field<'a>(component: &'a Component, name: &str) -> Result<Option<&'a str>, String> {
    let mut found = component.fields.iter().filter(|field| field.name == name);
    let first = found.next().map(|field| field.value.as_str());
    match found.next() {
        None => Ok(first),
        Some(_) => Err(format!("component {} has two fields {name}", component.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, value};

    fn manifest(components: Vec<Component>) -> Manifest {
        let components = Components::new(components);
        Manifest {
            key: components.key(),
            components,
            fingerprint: Fingerprint::new("cuda", [("nvrtc", "13.0")]),
            target: Target { min_driver: 12080, ..Target::cubin(90) },
            ..value::manifest("team", b"name", Digest::of(b""), 0, 0.0)
        }
    }

    fn honest() -> Manifest {
        let claims = manifest(Vec::new());
        let of_claims = claimed_components(&claims.fingerprint, &claims.target, &claims.namespace);
        manifest(of_claims.into())
    }

    #[test]
    fn a_claim_that_is_not_the_keys_is_refused() {
        honest().validate().unwrap();
        let altered: [fn(&mut Manifest); 7] = [
            |m| m.namespace = "other".into(),
            |m| m.fingerprint.compiler = "native".into(),
            |m| m.fingerprint = Fingerprint::new("cuda", [("nvrtc", "13.1")]),
            |m| m.fingerprint = Fingerprint::new("cuda", [("", ""); 0]),
            |m| m.fingerprint = Fingerprint::new("cuda", [("nvrtc", "13.0"), ("x", "1")]),
            |m| m.target = Target { min_driver: 12080, ..Target::cubin(80) },
            |m| m.target.min_driver = 0,
        ];
        for (at, alter) in altered.into_iter().enumerate() {
            let mut claims = honest();
            alter(&mut claims);
            assert!(claims.validate().is_err(), "alteration {at}");
        }
    }

    #[test]
    fn a_key_that_says_a_thing_twice_or_not_at_all_is_refused() {
        let all = honest().components;
        for left_out in 0..3 {
            let kept = all.iter().enumerate().filter(|(at, _)| *at != left_out);
            let fewer = kept.map(|(_, component)| component.clone()).collect();
            assert!(manifest(fewer).validate().is_err(), "without {left_out}");
            let twice = all.iter().chain(all.iter().skip(left_out).take(1));
            assert!(manifest(twice.cloned().collect()).validate().is_err(), "twice {left_out}");
        }
        let mut other: Vec<Component> = all.iter().cloned().collect();
        let mut fields = other[0].fields.clone();
        fields.push(KeyField::new(COMPILER, value::FAMILY));
        other[0] = Component::new(FINGERPRINT, fields);
        assert!(manifest(other).validate().is_err(), "two compilers");
    }

    #[test]
    fn other_tools_keys_name_the_compiler_alone() {
        let group = Manifest {
            fingerprint: Fingerprint::new("triton", [("triton", "3.6")]),
            target: Target::any(),
            ..manifest(vec![
                Component::new("graph", vec![KeyField::new("key", "its own hash")]),
                Component::new(FINGERPRINT, vec![KeyField::new(COMPILER, "triton")]),
                Component::new(NAMESPACE, vec![KeyField::new("namespace", "team")]),
            ])
        };
        group.validate().unwrap();
        let cubin = Manifest { target: Target::cubin(90), ..group };
        assert!(cubin.validate().is_err(), "a GPU that its key does not name");
    }

    #[test]
    fn folders_name_their_gpus_in_their_own_words() {
        for (text, target) in [
            ("gpu_90", "gpu_90".parse().unwrap()),
            ("gpu_80+gpu_90", Target::any()),
            ("none", Target::any()),
        ] {
            let [toolchain, _, tenant] = claimed_components(
                &Fingerprint::new(value::FOLDER_FAMILY, [("torch", "2.11")]),
                &target,
                "team",
            );
            let gpus = Component::new(TARGET, vec![KeyField::new("target", text)]);
            let mut folder = manifest(vec![toolchain, gpus, tenant]);
            folder.fingerprint = Fingerprint::new(value::FOLDER_FAMILY, [("torch", "2.11")]);
            folder.target = target;
            folder.validate().unwrap();
            folder.target = "gpu_80".parse().unwrap();
            assert!(folder.validate().is_err(), "{text}");
        }
    }
}
