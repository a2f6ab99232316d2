//! The program as somebody starts it: its options, its end, its lock, a short run and its audit.

use std::{process::Output, time::Duration};

use crate::process::{Site, ended, path_text, program, terminate};

async fn output(arguments: &[&str]) -> Output {
    program(arguments).output().await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn it_explains_itself() {
    for arguments in [&["--help"][..], &["--version"], &["audit", "--help"], &["openapi"], &["asyncapi"]] {
        let output = output(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}: {}", text(&output.stderr));
    }
    let unknown = output(&["--no-such-option"]).await;
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("--no-such-option"), "{}", text(&unknown.stderr));
}

#[tokio::test]
async fn what_it_cannot_do_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let empty = output(&["audit", "--data-dir", path_text(folder.path())]).await;
    assert_eq!(empty.status.code(), Some(1));
    assert!(text(&empty.stderr).contains("nothing to audit"), "{}", text(&empty.stderr));
    let nowhere = output(&["audit", "--data-dir", "/no/such/folder"]).await;
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text(&nowhere.stderr).contains("/no/such/folder"), "{}", text(&nowhere.stderr));
    let unreadable = program(&["openapi"]).env("LOG", "fleet=loud").output().await.unwrap();
    assert_eq!(unreadable.status.code(), Some(1));
    assert!(text(&unreadable.stderr).starts_with("error: LOG: "), "{}", text(&unreadable.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_a_folder_and_a_good_end() {
    let site = Site::new();
    let mut first = site.start(None);
    site.is_ready().await;
    let data = site.data();
    for command in ["run", "audit"] {
        let mut arguments = vec![command, "--data-dir", path_text(&data)];
        if command == "run" {
            arguments.extend(["--no-simulator", "--port", "0"]);
        }
        let second = output(&arguments).await;
        assert_eq!(second.status.code(), Some(1), "{command}");
        let said = text(&second.stderr);
        assert!(said.contains("another process uses the data folder"), "{command}: {said}");
    }
    let taken = Site::new();
    let port = site.url().rsplit_once(':').unwrap().1.to_owned();
    let elsewhere = output(&["run", "--no-simulator", "--port", &port, "--data-dir", path_text(&taken.data())]).await;
    assert_eq!(elsewhere.status.code(), Some(1));
    assert!(text(&elsewhere.stderr).contains(&port), "the port that is taken is named: {}", text(&elsewhere.stderr));

    terminate(&first).await;
    let status = ended(&mut first, Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(0), "{}", site.said());
    assert_eq!(site.said().matches("serving at http://127.0.0.1:").count(), 1, "{}", site.said());
    for command in ["run", "audit"] {
        let elsewhere = ["--data-dir", path_text(&data), "--fleet-store", "postgres://nobody@127.0.0.1:1/fleet"];
        let refused = output(&[&[command][..], &elsewhere].concat()).await;
        assert_eq!(refused.status.code(), Some(1), "{command}");
        let said = text(&refused.stderr);
        assert!(said.contains("fleet of this data folder's system is embedded"), "{command}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_run_is_audited_clean() {
    let folder = tempfile::tempdir().unwrap();
    let (data, ledger) = (folder.path().join("data"), folder.path().join("accepted.ndjson"));
    let (data, ledger) = (path_text(&data), path_text(&ledger));
    let run = ["run", "--data-dir", data, "--port", "0", "--accepted", ledger, "--duration", "3", "--drones", "20"];
    let run = [&run[..], &["--orders-per-second", "5", "--time-scale", "60", "--misbehave", "0"]].concat();
    let output_of_run = output(&run).await;
    assert!(output_of_run.status.success(), "{}", text(&output_of_run.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&output_of_run.stdout).unwrap();
    assert_eq!((&summary["offered"], &summary["accepted"]), (&15.into(), &15.into()), "{summary}");
    assert_eq!(summary["still_open"], 0, "{summary}");

    let audit = output(&["audit", "--data-dir", data, "--accepted", ledger]).await;
    assert!(audit.status.success(), "{}{}", text(&audit.stdout), text(&audit.stderr));
    assert!(text(&audit.stdout).ends_with("clean\n"), "{}", text(&audit.stdout));

    // A delivery that nobody has is found missing.
    let lost = "{\"id\":\"00000000-0000-7000-8000-000000000001\"}\n";
    std::fs::write(ledger, lost).unwrap();
    let audit = output(&["audit", "--data-dir", data, "--accepted", ledger]).await;
    assert_eq!(audit.status.code(), Some(1));
    assert!(text(&audit.stdout).contains("is lost"), "{}", text(&audit.stdout));
}
