//! Arbitrary configuration files and environment variables.

use std::cell::OnceCell;
use std::fs;

use svcdns::config::{Config, Flags};
use tempfile::TempDir;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

/// Fuzzes settings; the input is a file, a NUL, and a variable per line.
pub fn configuration(input: &[u8]) {
    let mut parts = input.splitn(2, |byte| *byte == 0);
    let (text, environment) = (
        parts.next().unwrap_or_default(),
        String::from_utf8_lossy(parts.next().unwrap_or_default()),
    );
    let variables = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(variable, _)| *variable != "SVCDNS_CONFIG");
    let variables = variables.map(|(variable, value)| (variable.to_owned(), value.to_owned()));
    let read = FOLDER.with(|folder| {
        let path = folder.get_or_init(|| tempfile::tempdir().unwrap()).path().join("svcdns.toml");
        fs::write(&path, text).unwrap();
        Config::load(Some(&path), variables, &Flags::default())
    });
    match read {
        Ok(config) => {
            assert!(
                !config.effective().is_empty()
                    && config.zones.len() > 0
                    && !config.registries.is_empty()
            );
            let _ = (
                config.catalog(),
                config.answer(&config.listen),
                config.server(),
                config.upstream(&config.listen),
            );
            assert!(config.ttl <= 86_400 && config.negative_ttl <= 86_400);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
