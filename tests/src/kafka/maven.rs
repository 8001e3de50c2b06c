//! Jars and all that they need, fetched by Maven from wherever its configuration says.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::install::{part, step, succeed};
use super::packages;
use crate::limits;

/// Group, artifact, version.
pub(crate) type Artifact = (&'static str, &'static str, &'static str);

/// Fills a directory with jars unless it has them. Held under the lock of the peers.
///
/// # Errors
/// If Maven is missing and cannot be installed, or the fetch fails.
pub(crate) fn ensure(lib: &Path, name: &str, artifacts: &[Artifact], what: &str) -> Result<()> {
    let pom = pom(name, artifacts);
    part(lib, &pom, |dir| {
        packages::need("mvn", "maven")?;
        step(&format!("fetching {what}"));
        fs::write(dir.join("pom.xml"), &pom)?;
        let mut maven = Command::new("mvn");
        maven.current_dir(dir).args(["-B", "-q", "-ntp", "dependency:copy-dependencies"]);
        maven.args(["-DoutputDirectory=.", "-DincludeScope=runtime"]);
        succeed(maven, limits::FETCH)
    })
}

fn pom(name: &str, artifacts: &[Artifact]) -> String {
    let dependencies: String = artifacts
        .iter()
        .map(|(group, artifact, version)| {
            format!(
                "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                 <version>{version}</version></dependency>\n"
            )
        })
        .collect();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion>\n\
         <groupId>peers</groupId><artifactId>{name}</artifactId><version>1</version>\
         <packaging>pom</packaging>\n<dependencies>\n{dependencies}</dependencies></project>\n"
    )
}
