use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::access::Role;

fn actor(who: &str, action: &str) -> Actor {
    let caller = Caller { principal: Principal::new(who).unwrap(), role: Role::Admin };
    Actor::new(&caller, Some([10, 0, 0, 7].into()), action)
}

fn log_of(changes: Vec<(String, Change)>) -> Vec<Entry> {
    let mut last = (0, START);
    let entry = |(at, (action, change)): (usize, (String, Change))| {
        let draft = actor("ana", &action).changes(change);
        let entry = draft.after(last, Timestamp::from_millis(at as i64));
        last = (entry.seq, entry.hash);
        entry
    };
    changes.into_iter().enumerate().map(entry).collect()
}

fn checked(mut chain: Chain, log: &[Entry]) -> Result<Option<(u64, u64, Digest)>, Fault> {
    for entry in log {
        chain.follow(entry)?;
    }
    chain.end()
}

fn change() -> impl Strategy<Value = (String, Change)> {
    let record = prop::option::of("[a-z]{0,8}".prop_map(|text| json!({ "a": text }).to_string()));
    let refused = prop::option::of("[a-z ]{0,8}");
    ("[A-Za-z/]{0,12}", "[a-z/]{0,12}", refused, record.clone(), record).prop_map(
        |(action, resource, refused, before, after)| {
            (action, Change { resource, refused, before, after })
        },
    )
}

fn log() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec(change(), 1..12).prop_map(log_of)
}

/// What a field holds becomes something else.
fn edit(entry: &mut Entry, field: usize) {
    let other = |text: &mut Option<String>| {
        *text = match text.take() {
            None => Some(String::new()),
            Some(_) => None,
        };
    };
    match field {
        0 => entry.at = entry.at.plus_millis(1),
        1 => entry.principal.push('x'),
        2 => entry.role.clear(),
        3 => entry.from.push('1'),
        4 => entry.action.push('x'),
        5 => entry.resource.insert(0, 'x'),
        6 => other(&mut entry.refused),
        7 => other(&mut entry.before),
        8 => other(&mut entry.after),
        9 => {
            // From one text into the next.
            let moved = entry.action.pop().unwrap_or('y');
            entry.resource.insert(0, moved);
        }
        _ => entry.hash = Digest::of(entry.hash.as_bytes()),
    }
}

proptest! {
    #[test]
    fn a_log_is_as_it_was_written(log in log()) {
        let last = log.last().unwrap();
        let end = Some((1, last.seq, last.hash));
        prop_assert_eq!(checked(Chain::whole(), &log), Ok(end));
        for entry in &log {
            prop_assert_eq!(checked(Chain::whole().with_head(entry.hash), &log), Ok(end));
            prop_assert_eq!(&Entry::of_line(&entry.to_line()).unwrap(), entry);
        }
        for from in 1..log.len() {
            let part = Some((log[from].seq, last.seq, last.hash));
            prop_assert_eq!(checked(Chain::part(), &log[from..]), Ok(part));
        }
    }

    #[test]
    fn an_edit_is_found_where_it_is(log in log(), at in any::<prop::sample::Index>(), field in 0..11usize) {
        let (mut log, at) = (log.clone(), at.index(log.len()));
        edit(&mut log[at], field);
        prop_assert_eq!(checked(Chain::whole(), &log), Err(Fault::Changed(at as u64 + 1)));
    }

    #[test]
    fn an_edit_with_a_hash_made_anew_is_found_at_the_next(log in log(), at in any::<prop::sample::Index>(), field in 0..10usize) {
        let (mut log, at) = (log.clone(), at.index(log.len()));
        let head = log.last().unwrap().hash;
        edit(&mut log[at], field);
        log[at].hash = log[at].digest();
        let found = checked(Chain::whole().with_head(head), &log);
        if at + 1 < log.len() {
            prop_assert_eq!(found, Err(Fault::Unlinked(at as u64 + 2)));
        } else {
            prop_assert_eq!(found, Err(Fault::Headless { head, last: at as u64 + 1 }));
        }
    }

    #[test]
    fn what_was_taken_out_is_found(log in log(), from in any::<prop::sample::Index>(), count in 1..4usize) {
        let (head, whole) = (log.last().unwrap().hash, log.len());
        let (mut log, from) = (log.clone(), from.index(whole));
        let to = (from + count).min(whole);
        log.drain(from..to);
        let found = checked(Chain::whole().with_head(head), &log);
        if to < whole {
            let (first, last) = (from as u64 + 1, to as u64);
            prop_assert_eq!(found, Err(Fault::Missing { first, last }));
        } else {
            prop_assert_eq!(checked(Chain::whole(), &log).is_ok(), true);
            prop_assert_eq!(found, Err(Fault::Headless { head, last: from as u64 }));
        }
    }

    #[test]
    fn what_was_put_in_or_moved_is_found(log in log(), from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
        let (from, to) = (from.index(log.len()), to.index(log.len()));
        let mut twice = log.clone();
        twice.insert(to, log[from].clone());
        prop_assert!(checked(Chain::whole(), &twice).is_err());
        if from != to {
            let mut moved = log.clone();
            moved.swap(from, to);
            prop_assert!(checked(Chain::whole(), &moved).is_err());
        }
    }

    #[test]
    fn all_written_anew_has_another_head(log in log(), at in any::<prop::sample::Index>(), field in 0..10usize) {
        let head = log.last().unwrap().hash;
        let (mut log, at) = (log.clone(), at.index(log.len()));
        edit(&mut log[at], field);
        let mut previous = START;
        for entry in &mut log {
            entry.previous = previous;
            entry.hash = entry.digest();
            previous = entry.hash;
        }
        prop_assert!(checked(Chain::whole(), &log).is_ok());
        let last = log.len() as u64;
        prop_assert_eq!(checked(Chain::whole().with_head(head), &log), Err(Fault::Headless { head, last }));
    }

    #[test]
    fn a_record_is_read_as_it_was_written(number in any::<f64>(), text in ".*") {
        let record = json!({ "number": number, "text": text, "list": [number, null, true] });
        let change = Change::new("job/a", None, Some(&record));
        let entry = actor("ana", "JobService/CreateJob").changes(change).after((0, START), Timestamp::from_millis(1));
        prop_assert_eq!(Entry::of_line(&entry.to_line()).unwrap(), entry);
    }
}

#[test]
fn what_is_tampered_with_stays_readable() {
    let mut log = log_of(vec![("a".to_owned(), Change::done("job/a", &json!({ "x": 1 })))]);
    for bad in ["{", "\"text\"", "1.0000000000000000000001", " {}"] {
        log[0].after = Some(bad.to_owned());
        let again = Entry::of_line(&log[0].to_line()).unwrap();
        assert_eq!(again, log[0]);
        assert_eq!(checked(Chain::whole(), &[again]), Err(Fault::Changed(1)));
    }
}

#[test]
fn secrets_are_hidden() {
    let record = json!({
        "name": "a",
        "environment_variables": { "HF": "canary", "N": 1 },
        "secret_name": "hf",
        "client_secret": "canary",
        "nested": [{ "account_key": "canary", "Password": "canary" }],
        "index": "pip install --index-url https://ana:canary@pypi.example.com/simple x",
        "sas": "https://a.blob.core.windows.net/c/f?sv=1&sig=canary#x",
        "max_tokens_count": 5,
    });
    let text = redacted(record).to_string();
    assert!(!text.contains("canary"), "{text}");
    for kept in
        ["\"hf\"", "HF", "[hidden]@pypi.example.com/simple x", "core.windows.net/c/f?[hidden]"]
    {
        assert!(text.contains(kept), "{kept}: {text}");
    }
}

#[test]
fn a_long_record_is_kept_as_its_digest() {
    let long = json!({ "text": "x".repeat(MOST) });
    let after = Change::done("job/a", &long).after.unwrap();
    assert!(after.len() < 200 && after.contains("too_long_to_keep"), "{after}");
}

/// A log without its beginning is whole if an entry tells where it was cut, and that is where it was.
#[test]
fn a_pruned_log_is_whole_where_an_entry_tells_of_it() {
    let done = |number: u64| ("test".to_owned(), Change::done("job/a", &json!({ "n": number })));
    let log = log_of((1..=5).map(done).collect());
    let cut = |through: u64, head: Digest| {
        let what = serde_json::to_value(Checkpoint { through, head }).unwrap();
        let change = Change::done(Checkpoint::RESOURCE, &what);
        let last = (5, log[4].hash);
        let draft = actor("ana", Checkpoint::ACTION).changes(change);
        let told = draft.after(last, Timestamp::from_millis(9));
        let rest = log.iter().filter(|entry| entry.seq > 3).cloned();
        rest.chain([told]).collect::<Vec<_>>()
    };
    let whole = cut(3, log[2].hash);
    assert_eq!(checked(Chain::whole(), &whole), Ok(Some((4, 6, whole[2].hash))));
    // Another cut is not where it begins, nor is a cut that nothing tells of.
    let missing = Err(Fault::Missing { first: 1, last: 3 });
    assert_eq!(checked(Chain::whole(), &cut(2, log[1].hash)), missing);
    assert_eq!(checked(Chain::whole(), &cut(3, log[1].hash)), missing);
    assert_eq!(checked(Chain::whole(), &log[3..]), missing);
    // All but the entry that tells of it may be gone.
    let change = Change::done(
        Checkpoint::RESOURCE,
        &serde_json::to_value(Checkpoint { through: 5, head: log[4].hash }).unwrap(),
    );
    let draft = actor("ana", Checkpoint::ACTION).changes(change);
    let alone = draft.after((5, log[4].hash), Timestamp::from_millis(9));
    assert!(checked(Chain::whole(), std::slice::from_ref(&alone)).is_ok());
}
