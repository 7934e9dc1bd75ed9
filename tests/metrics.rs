//! The metrics page, its documentation, and the alert rules and the dashboard that read it.
//!
//! `make monitoring` runs the ignored tests, which need Prometheus and promtool.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::Value;
use support::files::Files;
use support::process::Process;
use support::svcdns::Svcdns;
use support::upstream::{Record, Upstream};
use support::{SOON, dns, eventually};
use tempfile::TempDir;

/// A server with every part that has metrics, after some queries.
struct Everything {
    server: Svcdns,
    address: String,
    _parts: (Files, Upstream, TempDir),
}

/// Number of the next server's pool of addresses: tests run at the same time.
static NEXT: AtomicU8 = AtomicU8::new(1);

impl Everything {
    fn start() -> Self {
        let files = Files::new(&[
            ("default/default/hello.svc/latest/127.0.0.1:9", r#"{"protocol":"http"}"#),
            ("default/default/wrong.svc/latest/10.0.0.1:0", "{}"),
        ]);
        let upstream = Upstream::start();
        upstream.put(vec![Record::a("www.example.com", 60, "192.0.2.1")]);
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("svcdns.toml");
        let network = NEXT.fetch_add(1, Ordering::Relaxed);
        let text = format!(
            "[checks]\nenabled = true\n[bridge]\nenabled = true\nbind = true\n\
             pool = '127.219.{network}.0/24'\nports = [20083]\n"
        );
        fs::write(&config, text).unwrap();
        let (url, upstream_flag) = (files.url(), upstream.flag());
        let mut flags = vec!["--config", config.to_str().unwrap(), "--registry", &url];
        flags.extend(["--upstream", &upstream_flag, "--admin-listen", "127.0.0.1:0"]);
        let server = Svcdns::serve(&flags);
        let asked = |name: &str, code: &str| {
            eventually(name, SOON, || (dns::code(server.address, name, 1) == code).then_some(()));
        };
        asked("hello.svc", "NOERROR");
        asked("nothing.svc", "NXDOMAIN");
        asked("www.example.com", "NOERROR");
        dns::dig(server.address, &["+tcp", "hello.svc"]);
        // A service of the bridge has metrics of its own from its first connection on.
        let bridged = eventually("an address of the bridge", SOON, || {
            let found = dns::addresses(server.address, "hello.svc").ok()?;
            found.first().copied().filter(|one| one.to_string().starts_with("127.219."))
        });
        let read = TcpStream::connect((bridged, 20083)).unwrap().read(&mut [0]);
        assert!(read.is_err(), "nothing listens at the endpoint");
        let status: Value =
            serde_json::from_slice(&server.run(&["status", "--json"]).stdout).unwrap();
        let address = status["admin"].as_str().unwrap().to_owned();
        Self { server, address, _parts: (files, upstream, folder) }
    }

    fn page(&self, accept: &str) -> String {
        let url = format!("http://{}/metrics", self.address);
        stdout(&Command::new("curl").args(["-sSf", "-H", accept, &url]).output().unwrap())
    }
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A metric as the page shows it.
#[derive(Debug, Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
}

/// Returns the metrics of a page in the text format of Prometheus, by name.
fn metrics(page: &str) -> BTreeMap<String, Metric> {
    let mut found: BTreeMap<String, Metric> = BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            let metric = Metric { help: help.to_owned(), ..Metric::default() };
            found.insert(name.to_owned(), metric);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            kind.clone_into(&mut found.get_mut(name).unwrap().kind);
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|family| found.get(*family).is_some_and(|metric| metric.kind == "histogram"));
            let metric = found.get_mut(family.unwrap_or(name));
            let metric = metric.unwrap_or_else(|| panic!("no TYPE before {line}"));
            let labels = line.split_once('{').map_or("", |(_, rest)| rest);
            let labels = labels.split("\",").filter_map(|label| label.split_once("=\""));
            metric.labels.extend(labels.map(|(name, _)| name.to_owned()));
        }
    }
    found
}

#[test]
fn every_metric_is_documented_with_its_labels() {
    let everything = Everything::start();
    let page = everything.page("Accept: */*");
    let mut table = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for (name, Metric { kind, help, labels }) in metrics(&page) {
        let labels = match name.as_str() {
            // Without a sample here: nothing is held, and a file registry has no snapshot.
            "svcdns_registry_hold_end_timestamp_seconds" => "`cause`, `registry`".to_owned(),
            "svcdns_snapshot_age_seconds" => "`registry`".to_owned(),
            _ => {
                let labels = labels.iter().filter(|label| *label != "le");
                labels.map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
            }
        };
        writeln!(table, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let text = fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- metrics: begin -->\n", "<!-- metrics: end -->");
    let (before, rest) = text.split_once(begin).unwrap();
    let (documented, after) = rest.split_once(end).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, format!("{before}{begin}{table}{end}{after}")).unwrap();
    } else {
        let update = "run UPDATE_DOCS=1 cargo test --test metrics";
        assert_eq!(documented, table, "docs/metrics.md is outdated: {update}");
    }
    everything.server.stop();
}

#[test]
fn the_page_is_in_the_format_that_a_client_asks_for() {
    let everything = Everything::start();
    let text = everything.page("Accept: */*");
    assert!(text.contains("\n# TYPE svcdns_queries_total counter\n"), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
    let open = everything.page("Accept: application/openmetrics-text;version=1.0.0");
    assert!(open.contains("\n# TYPE svcdns_queries counter\n"), "{open}");
    assert!(open.ends_with("# EOF\n"), "{open}");
    everything.server.stop();
}

fn monitoring(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring").join(file)
}

/// Returns the panels and queries of the dashboard.
fn dashboard_queries() -> Vec<(String, String)> {
    let text = fs::read_to_string(monitoring("grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let [title, query] =
                [&panel["title"], &target["expr"]].map(|text| text.as_str().unwrap().to_owned());
            queries.push((title, query));
        }
    }
    assert!(queries.len() > 40, "{queries:?}");
    queries
}

/// Returns the names of metrics in a query, or in a file of rules.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("svcdns_")).collect()
}

#[test]
fn alerts_and_dashboard_use_only_metrics_and_labels_that_exist() {
    let documented = include_str!("../docs/metrics.md");
    let rows = documented.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let labels: BTreeMap<&str, &str> = rows.collect();
    let row = |name: &str| labels.get(name.strip_suffix("_bucket").unwrap_or(name)).copied();
    let exists = |name: &str| assert!(row(name).is_some(), "there is no metric {name}");
    let alerts = fs::read_to_string(monitoring("alerts.yml")).unwrap();
    metrics_in(&alerts).into_iter().for_each(exists);
    for (title, query) in dashboard_queries() {
        for name in metrics_in(&query) {
            exists(name);
            let Some((_, by)) = query.split_once(" by (") else { continue };
            for label in by.split(')').next().unwrap().split(", ") {
                let is_own = row(name).is_some_and(|row| row.contains(&format!("`{label}`")));
                assert!(
                    is_own || ["instance", "le"].contains(&label),
                    "{title}: {name} by {label}"
                );
            }
        }
    }
}

#[test]
#[ignore = "needs promtool: make monitoring"]
fn promtool_has_no_complaint() {
    let everything = Everything::start();
    let page = everything.page("Accept: */*");
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = promtool.stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaint.is_empty(), "{complaint}");
    everything.server.stop();
}

#[test]
#[ignore = "needs promtool: make monitoring"]
fn alert_rules_are_valid_and_fire() {
    for (command, path) in [
        ("check", monitoring("alerts.yml")),
        ("test", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/monitoring/alerts_test.yml")),
    ] {
        let output = Command::new("promtool").args([command, "rules"]).arg(path).output().unwrap();
        assert!(stdout(&output).contains("SUCCESS"), "{output:?}");
    }
    // Each rule has a case in which it fires.
    let cases = include_str!("monitoring/alerts_test.yml");
    let rules = fs::read_to_string(monitoring("alerts.yml")).unwrap();
    let names = rules.lines().filter_map(|line| line.split_once("- alert: "));
    let mut count = 0;
    for (_, name) in names {
        assert!(cases.contains(&format!("alertname=\"{name}\"")), "{name} is not tested");
        count += 1;
    }
    assert!(count > 10, "{count}");
}

#[test]
#[ignore = "needs Prometheus: make monitoring"]
fn every_query_of_the_dashboard_has_data_in_a_real_prometheus() {
    let everything = Everything::start();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("prometheus.yml");
    // The configuration is that of the page.
    let page = include_str!("../docs/metrics.md");
    let (block, _) = page.split_once("```yaml\n").unwrap().1.split_once("```").unwrap();
    let block = block.replace("127.0.0.1:5380", &everything.address);
    let interval = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n";
    fs::write(&config, format!("{interval}{block}")).unwrap();
    fs::copy(monitoring("alerts.yml"), folder.path().join("alerts.yml")).unwrap();
    let address = support::free_address();
    let url = format!("http://{address}");
    let prometheus = Process::start(
        Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}")),
    );
    let ask = |path: &str, arguments: &[&str]| -> Option<Value> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-G", &format!("{url}{path}")]).args(arguments);
        serde_json::from_slice(&curl.output().unwrap().stdout).ok()
    };
    eventually("the target to be scraped", SOON, || {
        let targets = ask("/api/v1/targets", &[])?;
        (targets["data"]["activeTargets"][0]["health"] == "up").then_some(())
    });
    let empty = |query: &str| {
        let query = query
            .replace("$__rate_interval", "1m")
            .replace("$job", ".*")
            .replace("$instance", ".*");
        let found = ask("/api/v1/query", &["--data-urlencode", &format!("query={query}")]);
        let found = found.unwrap_or_else(|| panic!("{query}: {}", prometheus.log()));
        assert_eq!(found["status"], "success", "{query}: {found}");
        found["data"]["result"].as_array().unwrap().is_empty()
    };
    for (title, query) in dashboard_queries() {
        eventually(&format!("data for {title}: {query}"), SOON, || (!empty(&query)).then_some(()));
    }
    let rules = ask("/api/v1/rules", &[]).unwrap();
    for rule in rules["data"]["groups"][0]["rules"].as_array().unwrap() {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    everything.server.stop();
}
