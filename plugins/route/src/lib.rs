//! Sets a header by rules: the first rule that is true for an event decides. See README.md.

use flumen_rules::{Rule, check_keys};
use flumen_sdk::prelude::*;
use flumen_sdk::serde_json::{Map, Value};

/// The plugin.
pub struct Route {
    header: String,
    routes: Vec<(Rule, String)>,
    otherwise: Option<String>,
}

impl BatchInterceptor for Route {
    const OPTIONS: &'static str = include_str!("../options.json");

    fn open(config: Config) -> Result<(Self, Reads), String> {
        let settings: Map<String, Value> = config.parse()?;
        check_keys("config", &settings, &["header", "routes", "otherwise"])?;
        let header = match settings.get("header") {
            None => {
                return Err(
                    "config: the key `header` is missing; name the header that the route is written to"
                        .to_owned(),
                );
            }
            Some(name) => text("config.header", name)?,
        };
        let Some(list) = settings.get("routes").and_then(Value::as_array).filter(|list| !list.is_empty())
        else {
            return Err(
                "config.routes: write a list: `routes = [{ when = { contains = \"...\" }, to = \"name\" }]`"
                    .to_owned(),
            );
        };
        let mut reads = Reads::nothing();
        let mut routes = Vec::with_capacity(list.len());
        for (place, route) in list.iter().enumerate() {
            routes.push(parse(&format!("config.routes[{place}]"), route, &mut reads)?);
        }
        let otherwise = settings.get("otherwise").map(|value| text("config.otherwise", value)).transpose()?;
        if otherwise.is_none() {
            // Events without a route keep what they have.
            reads = reads.and_header(&header);
        }
        Ok((Self { header, routes, otherwise }, reads))
    }

    fn process(&mut self, batch: &BatchView) -> Result<Difference, String> {
        let rows = batch.rows();
        let mut chosen: Vec<Option<&str>> = vec![None; rows];
        for (rule, to) in &self.routes {
            for (choice, verdict) in chosen.iter_mut().zip(rule.verdicts(batch)) {
                if verdict && choice.is_none() {
                    *choice = Some(to);
                }
            }
        }
        let there = match self.otherwise {
            Some(_) => None,
            None => batch.headers().find(|header| header.name() == self.header),
        };
        let mut column = HeaderBuilder::with_capacity(&self.header, rows, rows * 8);
        for (row, choice) in chosen.into_iter().enumerate() {
            let choice = choice.or(self.otherwise.as_deref());
            column.push_option(choice.or_else(|| there.and_then(|there| there.get_str(row))));
        }
        let mut difference = Difference::unchanged();
        difference.set_header(column);
        Ok(difference)
    }
}

fn parse(at: &str, route: &Value, reads: &mut Reads) -> Result<(Rule, String), String> {
    let Some(route) = route.as_object() else {
        return Err(format!("{at}: `{route}` is not a route; write `{{ when = {{ ... }}, to = \"name\" }}`"));
    };
    check_keys(at, route, &["when", "to"])?;
    let (Some(when), Some(to)) = (route.get("when"), route.get("to")) else {
        return Err(format!("{at}: a route has both `when` and `to`; add what is missing"));
    };
    Ok((flumen_rules::parse(&format!("{at}.when"), when, reads)?, text(&format!("{at}.to"), to)?))
}

fn text(at: &str, value: &Value) -> Result<String, String> {
    match value.as_str() {
        Some("") => Err(format!("{at}: an empty text; write a name")),
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("{at}: `{value}` is not text; put it in quotes")),
    }
}

flumen_sdk::batch_interceptor!(Route);

#[cfg(test)]
mod tests {
    use super::*;
    use flumen_sdk::testing::{self, Answer, TestEvent};

    fn run(config: &str, events: &[TestEvent]) -> Vec<Option<String>> {
        let (mut plugin, reads) = Route::open(Config::new(config)).unwrap();
        let answer = Answer::new(plugin.process(&testing::batch(&reads, events)).unwrap(), events.len());
        (0..events.len()).map(|row| answer.header("to", row).map(str::to_owned)).collect()
    }

    fn event(body: &str, headers: &[(&str, &str)]) -> TestEvent {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        TestEvent { body: body.into(), time: 0, headers }
    }

    #[test]
    fn the_first_true_rule_decides() {
        let events = [
            event("an error in pay", &[]),
            event("pay ok", &[("to", "old")]),
            event("other", &[("to", "old")]),
            event("other", &[]),
        ];
        let routes =
            r#""routes":[{"when":{"contains":"error"},"to":"alarm"},{"when":{"contains":"pay"},"to":"pay"}]"#;
        let to = |values: [Option<&str>; 4]| values.map(|value| value.map(str::to_owned)).to_vec();
        let without = run(&format!(r#"{{"header":"to",{routes}}}"#), &events);
        assert_eq!(without, to([Some("alarm"), Some("pay"), Some("old"), None]));
        let with = run(&format!(r#"{{"header":"to",{routes},"otherwise":"rest"}}"#), &events);
        assert_eq!(with, to([Some("alarm"), Some("pay"), Some("rest"), Some("rest")]));
    }

    #[test]
    fn errors_name_the_key() {
        let error = |config: &str| Route::open(Config::new(config)).map(|_| ()).unwrap_err();
        assert!(error("{}").contains("`header` is missing"));
        assert!(error(r#"{"header":"a"}"#).starts_with("config.routes: write a list"));
        assert!(
            error(r#"{"header":"a","routes":[{"to":"x"}]}"#)
                .starts_with("config.routes[0]: a route has both")
        );
        let wrong = r#"{"header":"a","routes":[{"when":{"contain":"x"},"to":"x"}]}"#;
        assert!(error(wrong).starts_with("config.routes[0].when: unknown key `contain`"), "{}", error(wrong));
    }
}
