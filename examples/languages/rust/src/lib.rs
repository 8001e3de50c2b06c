//! Keeps the events whose body holds a text, and marks them with a header.

use flumen_sdk::prelude::*;

#[derive(Deserialize)]
#[serde(crate = "flumen_sdk::serde", deny_unknown_fields)]
struct Options {
    contains: String,
    #[serde(default = "matched")]
    header: String,
}

fn matched() -> String {
    "matched".into()
}

#[derive(Default)]
struct Keep {
    contains: String,
    header: String,
    finder: Finder,
}

impl Interceptor for Keep {
    const OPTIONS: &'static str = r#"{
        "type": "object", "additionalProperties": false, "required": ["contains"],
        "properties": {
            "contains": { "type": "string", "minLength": 1, "description": "What the body has to hold." },
            "header": { "type": "string", "minLength": 1, "default": "matched", "description": "The header that is set." }
        }
    }"#;

    fn open(config: Config) -> Result<Self, String> {
        let Options { contains, header } = config.parse()?;
        if contains.is_empty() {
            return Err("config: the key `contains` is missing; add it".into());
        }
        Ok(Self { finder: Finder::new(&contains), contains, header })
    }

    fn reads(&self) -> Reads {
        Reads::body().and_header(&self.header)
    }

    fn intercept(&mut self, event: Event, edit: &mut Edit) {
        if self.finder.is_in(event.body()) {
            edit.set_header(&self.header, &*self.contains);
        } else {
            edit.drop();
        }
    }
}

flumen_sdk::interceptor!(Keep);
