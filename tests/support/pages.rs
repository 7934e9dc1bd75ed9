//! A web server that shows which name its client used.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

/// Serves at an address and port (0: a free one) what `page` makes of the address that a client
/// reached and of its Host header; returns the port.
pub(crate) fn serve(
    address: (&str, u16),
    page: impl Fn(SocketAddr, &str) -> String + Copy + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let local = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || send(stream, |host| page(local, host)));
        }
    });
    local.port()
}

/// Serves pages that name the Host.
pub(crate) fn serve_hosts(address: (&str, u16)) -> u16 {
    serve(address, |_, host| format!("page of {host}\n"))
}

fn send(mut stream: TcpStream, page: impl FnOnce(&str) -> String) {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(length @ 1..) => request.extend(&part[..length]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&request);
    let host = text.lines().find_map(|line| {
        line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("host"))
    });
    let page = page(host.map_or("nobody", |(_, host)| host));
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
    let _ = write!(stream, "{head}: {}\r\n\r\n{page}", page.len());
}
