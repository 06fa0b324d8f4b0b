use proptest::prelude::*;

use super::*;

fn patterns(values: &[&str]) -> Arc<Patterns> {
    Arc::new(Patterns::new(values.iter().map(|value| value.as_bytes())).unwrap().unwrap())
}

/// What becomes of output that comes in these pieces.
fn redacted(values: &[&str], pieces: &[&str]) -> String {
    let mut redactor = Redactor::new(patterns(values));
    let mut log: Vec<u8> =
        pieces.iter().flat_map(|piece| redactor.push(piece.as_bytes())).collect();
    log.extend(redactor.finish());
    String::from_utf8(log).unwrap()
}

#[test]
fn a_value_is_masked_wherever_it_stands() {
    let one = |text: &str| redacted(&["hunter2!"], &[text]);
    assert_eq!(one("hunter2!"), "***");
    assert_eq!(one("a hunter2! b hunter2!\n"), "a *** b ***\n");
    assert_eq!(one("hunter2!hunter2!"), "******");
    assert_eq!(one("hunter2? Hunter2!\n"), "hunter2? Hunter2!\n");
    assert_eq!(one(""), "");
}

#[test]
fn a_value_that_comes_in_pieces_is_masked_too() {
    let value = "s3cr3t-value";
    for at in 1..value.len() {
        let (first, second) = value.split_at(at);
        assert_eq!(redacted(&[value], &["<", first, second, ">"]), "<***>");
    }
    let pieces: Vec<String> = format!("<{value}>").chars().map(String::from).collect();
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    assert_eq!(redacted(&[value], &pieces), "<***>");
}

#[test]
fn only_what_may_become_a_value_waits() {
    let mut redactor = Redactor::new(patterns(&["s3cr3t-value"]));
    assert_eq!(redactor.push(b"epoch 1 loss 0.5"), b"epoch 1 loss 0.5");
    assert_eq!(redactor.push(b"\nepoch s3c"), b"\nepoch ");
    assert_eq!(redactor.held(), 3);
    assert_eq!(redactor.push(b"ond\n"), b"s3cond\n");
    assert_eq!(redactor.held(), 0);
}

#[test]
fn what_a_value_begins_with_is_masked_at_the_end_if_it_tells_much() {
    assert_eq!(redacted(&["s3cr3t-value"], &["a s3cr3"]), "a s3cr3");
    assert_eq!(redacted(&["s3cr3t-value"], &["a s3cr3t"]), "a ***");
}

#[test]
fn values_that_overlap_leave_nothing_of_either() {
    let values = ["abcdef", "abcdefghij", "defxyzdef"];
    assert_eq!(redacted(&values, &["abcdefghij"]), "***");
    assert_eq!(redacted(&values, &["abcdef", "ghij."]), "***.");
    assert_eq!(redacted(&values, &["abcdef", "xyzdef."]), "***.");
    assert_eq!(redacted(&values, &["abcdef", "ghi."]), "***ghi.");
}

#[test]
fn lines_and_forms_in_urls_are_masked_too() {
    let key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG\n-----END KEY-----\n";
    assert_eq!(redacted(&[key], &[key]), "***\n");
    let told = redacted(&[key], &["1: MIIEvQIBADANBgkq\n2: hkiG\n"]);
    assert_eq!(told, "1: ***\n2: hkiG\n");
    let told =
        redacted(&["p/ss w:rd+"], &["u=p%2Fss%20w%3Ard%2B&v=p/ss%20w%3Ard%2B&w=p%2Fss+w%3Ard%2B"]);
    assert_eq!(told, "u=***&v=***&w=***");
}

#[test]
fn what_is_too_short_is_not_looked_for() {
    assert!(Patterns::new([b"12345".as_slice(), b" 12345\n"].into_iter()).unwrap().is_none());
    assert!(Patterns::new([b"123456".as_slice()].into_iter()).unwrap().is_some());
}

/// What is masked, told in the simplest way: every byte of every place where a value stands.
fn plainly(values: &[Vec<u8>], output: &[u8]) -> Vec<bool> {
    let mut masked = vec![false; output.len()];
    for value in values {
        for at in 0..(output.len() + 1).saturating_sub(value.len()) {
            if output[at..].starts_with(value) {
                masked[at..at + value.len()].fill(true);
            }
        }
    }
    masked
}

proptest! {
    #[test]
    fn pieces_make_no_difference_and_nothing_else_is_lost(
        values in prop::collection::vec("[ab]{6,9}", 1..3),
        output in "[abc]{0,60}",
        cuts in prop::collection::vec(0_usize..60, 0..6),
    ) {
        let values: Vec<Vec<u8>> = values.into_iter().map(String::into_bytes).collect();
        let patterns = Arc::new(Patterns::new(values.iter().map(Vec::as_slice)).unwrap().unwrap());
        // No value begins with it, so nothing is held back in the end.
        let output = format!("{output}c").into_bytes();
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < output.len()).collect();
        cuts.extend([0, output.len()]);
        cuts.sort_unstable();
        let mut redactor = Redactor::new(patterns);
        let pieces = cuts.windows(2).flat_map(|cut| redactor.push(&output[cut[0]..cut[1]]));
        let log: Vec<u8> = pieces.collect();
        prop_assert!(redactor.finish().is_empty());
        let masked = plainly(&values, &output);
        let kept = |(byte, masked): (&u8, &bool)| (!masked).then_some(*byte);
        let kept: Vec<u8> = output.iter().zip(&masked).filter_map(kept).collect();
        let told: Vec<u8> = log.iter().copied().filter(|byte| *byte != b'*').collect();
        prop_assert_eq!(told, kept);
        prop_assert!(values.iter().all(|value| !log.windows(value.len()).any(|part| part == value)));
        let masks = log.iter().filter(|byte| **byte == b'*').count();
        prop_assert_eq!(masks > 0, masked.contains(&true));
    }
}
