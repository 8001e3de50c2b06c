//! "Did you mean".

/// The known word that was probably meant, if one is near.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = normal(word);
    known
        .into_iter()
        .map(|candidate| {
            let candidate_plain = normal(candidate);
            let mut distance = strsim::damerau_levenshtein(&plain, &candidate_plain);
            // The singular, a forgotten prefix or suffix: `roll` for `roll_size` only if nothing is nearer.
            if plain.len() >= 3
                && (candidate_plain.starts_with(&plain) || plain.starts_with(&candidate_plain))
            {
                distance = distance.min(2);
            }
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Long words are not compared: the time grows with the product of the lengths.
fn normal(word: &str) -> String {
    word.chars().take(64).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// The fix of a wrong word: the nearest one, and all of them if there are few.
pub(crate) fn fix(word: &str, known: &[&str]) -> String {
    let all = match known {
        [] => "there are none".to_owned(),
        [one] => format!("only {} is known", code(one)),
        many => format!("known are {}", listed(many)),
    };
    match nearest(word, known.iter().copied()) {
        Some(nearest) => format!("did you mean {}? {all}", code(nearest)),
        None => all,
    }
}

/// "`a`, `b` and `c`".
pub(crate) fn listed(words: &[&str]) -> String {
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => code(last),
        Some((last, rest)) => {
            let rest: Vec<String> = rest.iter().map(|word| code(word)).collect();
            format!("{} and {}", rest.join(", "), code(last))
        }
    }
}

fn code(word: &str) -> String {
    format!("`{word}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["paths", "path", "start", "poll_interval", "multiline_start"];
        assert_eq!(nearest("patsh", known), Some("paths"));
        assert_eq!(nearest("poll-interval", known), Some("poll_interval"));
        assert_eq!(nearest("multiline", known), Some("multiline_start"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("x", known), None);
    }
}
