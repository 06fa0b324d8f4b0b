//! "Did you mean …?": the known word nearest to a mistyped one.

/// The word of `known` nearest to `word`, or `None` if none is near enough to be what was meant.
///
/// Near means: at most one edit (insertion, deletion, replacement, swap of neighbours) for every
/// three characters, and at least one edit allowed; case and the choice between `-` and `_` do not
/// count. Words over 64 bytes are never suggested, so that the cost stays small.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    nearest(word, known).into_iter().next()
}

/// Every word of `known` that [`closest`] would call near, the nearest first, equally near ones in
/// the order given.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    if word.is_empty() || word.len() > 64 {
        return Vec::new();
    }
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let wanted = plain(word);
    let budget = (wanted.chars().count() / 3).max(1);
    let mut near: Vec<_> = known
        .into_iter()
        .filter(|candidate| candidate.len() <= 64)
        .map(|candidate| (strsim::osa_distance(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| {
            *distance <= budget && *distance < candidate.chars().count()
        })
        .collect();
    near.sort_by_key(|(distance, _)| *distance);
    near.into_iter().map(|(_, candidate)| candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        let known = ["command", "compute", "code", "tags", "a", "uri_file"];
        for (word, expected) in [
            ("comand", Some("command")),
            ("Command", Some("command")),
            ("ocde", Some("code")),
            ("uri-fil", Some("uri_file")),
            ("tag", Some("tags")),
            ("b", None),
            ("", None),
            ("environment", None),
            (&"command".repeat(20), None),
        ] {
            assert_eq!(closest(word, known), expected, "for {word}");
        }
    }
}
