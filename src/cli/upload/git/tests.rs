use super::*;

fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = std::process::Command::new("git")
        .args(["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgSign=false"])
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn a_repository_says_branch_commit_and_dirt() {
    let folder = tempfile::tempdir().unwrap();
    let begin = std::time::Instant::now();
    assert!(properties(folder.path()).await.is_empty());
    eprintln!("no repository: {:?}", begin.elapsed());
    assert!(properties(&folder.path().join("absent")).await.is_empty());

    run(folder.path(), &["init", "--quiet", "--initial-branch=topic"]);
    let fresh = properties(folder.path()).await;
    assert_eq!(fresh["azureml.git.branch"], "topic");
    assert!(!fresh.contains_key("azureml.git.commit"));
    assert_eq!(fresh["azureml.git.dirty"], "False");
    assert!(!fresh.contains_key("azureml.git.repository_uri"));

    let code = folder.path().join("src");
    std::fs::create_dir(&code).unwrap();
    std::fs::write(code.join("a.py"), "a").unwrap();
    run(folder.path(), &["add", "."]);
    run(folder.path(), &["commit", "--quiet", "-m", "first"]);
    run(folder.path(), &["remote", "add", "origin", "https://user:s3cret@example.com/r.git"]);
    let commit = run(folder.path(), &["rev-parse", "HEAD"]);
    let begin = std::time::Instant::now();
    let clean = properties(&code).await;
    eprintln!("a repository: {:?}", begin.elapsed());
    let expected = [
        ("azureml.git.branch", "topic"),
        ("azureml.git.commit", &commit),
        ("azureml.git.dirty", "False"),
        ("azureml.git.repository_uri", "https://example.com/r.git"),
        ("mlflow.source.git.branch", "topic"),
        ("mlflow.source.git.commit", &commit),
        ("mlflow.source.git.repoURL", "https://example.com/r.git"),
    ];
    let clean: Vec<(&str, &str)> = clean.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(clean, expected);

    std::fs::write(code.join("new.py"), "b").unwrap();
    assert_eq!(properties(&code).await["azureml.git.dirty"], "True");
    run(folder.path(), &["checkout", "--quiet", "--detach"]);
    let detached = properties(&code).await;
    assert!(!detached.contains_key("azureml.git.branch"));
    assert_eq!(detached["azureml.git.commit"], commit);
}

#[test]
fn urls_lose_their_secrets_only() {
    for (url, shown) in [
        ("https://host/r.git", "https://host/r.git"),
        ("https://u:p@host/r.git", "https://host/r.git"),
        ("https://token@host/r.git", "https://host/r.git"),
        ("https://u:p@ss@host/r@x", "https://host/r@x"),
        ("ssh://git@host/r", "ssh://git@host/r"),
        ("ssh://git:p@host/r", "ssh://host/r"),
        ("git@host:r.git", "git@host:r.git"),
        ("/local/path@x", "/local/path@x"),
    ] {
        assert_eq!(without_credentials(url), shown);
    }
}
