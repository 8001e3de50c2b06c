//! The configuration.

use flumen_sdk::prelude::*;

use crate::template::Template;

#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde", deny_unknown_fields)]
struct Raw {
    url: String,
    index: String,
    #[serde(default)]
    action: Action,
    #[serde(default)]
    id: Id,
    #[serde(default)]
    id_prefix: String,
    #[serde(default)]
    document: Document,
    #[serde(default)]
    headers: Vec<String>,
    authorization: Option<Authorization>,
}

/// What is done with a document.
#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(crate = "flumen_sdk::serde", rename_all = "lowercase")]
pub enum Action {
    /// An id that is there already is left as it is.
    #[default]
    Create,
    /// An id that is there already is written over.
    Index,
}

/// Where ids come from.
#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(crate = "flumen_sdk::serde", rename_all = "lowercase")]
pub enum Id {
    /// The event's identity.
    #[default]
    Identity,
    /// The server.
    None,
}

/// What a document is.
#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(crate = "flumen_sdk::serde", rename_all = "lowercase")]
pub enum Document {
    /// Time, body and headers.
    #[default]
    Fields,
    /// The body.
    Json,
}

/// The header `authorization`.
#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde", deny_unknown_fields)]
pub struct Authorization {
    /// Before the secret.
    #[serde(default = "api_key")]
    pub scheme: String,
    /// Its name.
    pub secret: String,
}

fn api_key() -> String {
    "ApiKey".to_owned()
}

/// The configuration, checked.
pub struct Options {
    /// With path and query.
    pub bulk_url: String,
    pub index: Template,
    pub action: Action,
    pub id: Id,
    pub id_prefix: String,
    pub document: Document,
    /// Headers that become fields, and their columns.
    pub fields: Vec<String>,
    /// All headers that are read, in the order of their columns.
    pub headers: Vec<String>,
    pub authorization: Option<Authorization>,
}

/// Only what is looked at.
const QUERY: &str = "filter_path=errors,items.*.status,items.*.error";

impl Options {
    pub fn parse(config: &Config) -> Result<Options, String> {
        let raw: Raw = config.parse()?;
        let mut headers = raw.headers.clone();
        let index = Template::parse(&raw.index, &mut headers).map_err(|error| format!("index: {error}"))?;
        let bulk_url = bulk_url(&raw.url)?;
        Ok(Options {
            bulk_url,
            index,
            action: raw.action,
            id: raw.id,
            id_prefix: raw.id_prefix,
            document: raw.document,
            fields: raw.headers,
            headers,
            authorization: raw.authorization,
        })
    }

    pub fn reads(&self) -> Reads {
        let mut reads = Reads::body();
        if self.id == Id::Identity {
            reads = reads.and_identity();
        }
        if self.document == Document::Fields || self.index.has_time() {
            reads = reads.and_time();
        }
        self.headers.iter().fold(reads, Reads::and_header)
    }
}

/// `https://host:9200` is the server; with a path it is the API.
fn bulk_url(url: &str) -> Result<String, String> {
    let after = url.split_once("://").map(|(_, after)| after);
    let Some(after) = after.filter(|after| !after.is_empty()) else {
        return Err(format!("url: {url:?} is no URL; write \"https://host:9200\""));
    };
    let path = after.find('/').and_then(|at| after.get(at..)).unwrap_or_default();
    let url = match path {
        "" => format!("{url}/_bulk"),
        "/" => format!("{url}_bulk"),
        _ => url.to_owned(),
    };
    let joint = if url.contains('?') { '&' } else { '?' };
    Ok(format!("{url}{joint}{QUERY}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_added_where_there_is_none() {
        for (url, wanted) in [
            ("https://es:9200", "https://es:9200/_bulk?"),
            ("https://es:9200/", "https://es:9200/_bulk?"),
            ("http://es/api/default/_bulk", "http://es/api/default/_bulk?"),
            ("http://es/_bulk?pipeline=x", "http://es/_bulk?pipeline=x&"),
        ] {
            assert_eq!(bulk_url(url).unwrap(), format!("{wanted}{QUERY}"));
        }
        assert!(bulk_url("es:9200").is_err());
    }
}
