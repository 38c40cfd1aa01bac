//! Metrics over HTTP: `GET /metrics`, and nothing else.
//!
//! One thread serves a few clients at a time; the next one waits in the kernel's queue. Whoever is
//! silent, slow or long-winded is cut off, see the limits below. What is asked of main is asked on
//! threads of their own, since main may be long in answering.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, warn};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Builder;
use tokio::sync::Semaphore;

use crate::metrics::{Dialect, render};
use crate::request::Totals;
use crate::socket::Place;
use crate::values::Listen;

/// Clients that are served at once.
const CLIENTS_MAX: usize = 4;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// To say what it wants.
    request: Duration,
    /// Altogether.
    connection: Duration,
}

const LIMITS: Limits =
    Limits { request: Duration::from_secs(5), connection: Duration::from_secs(60) };

/// Bytes of a request with its headers, at the most.
const REQUEST_BYTES_MAX: usize = 16 << 10;

/// How long to wait when the kernel gives no connection: there are no descriptors left, say.
const RESPITE: Duration = Duration::from_secs(1);

/// Says what was counted, or why that is not to be had.
pub(super) type Ask = Arc<dyn Fn() -> Result<Totals, String> + Send + Sync>;

/// Where it is listened, which goes with this if it is the path of a socket.
pub(super) struct Http {
    pub(super) address: Listen,
    _place: Option<Place>,
}

enum Listener {
    Port(TcpListener),
    Socket(std::os::unix::net::UnixListener),
}

/// Gives out metrics from now on.
///
/// # Errors
///
/// With the address in the text: it cannot be had. Or no thread can.
pub(super) fn serve(listen: &Listen, ask: Ask) -> io::Result<Http> {
    serve_within(LIMITS, listen, ask)
}

fn serve_within(limits: Limits, listen: &Listen, ask: Ask) -> io::Result<Http> {
    let (listener, address, place) = match listen {
        Listen::Port(address) => {
            let told = |error: io::Error| {
                io::Error::new(error.kind(), format!("metrics at {address}: {error}"))
            };
            let listener = TcpListener::bind(address).map_err(told)?;
            listener.set_nonblocking(true)?;
            let address = Listen::Port(listener.local_addr()?);
            (Listener::Port(listener), address, None)
        }
        Listen::Socket(path) => {
            let (listener, place) = crate::socket::listen_at(path)?;
            (Listener::Socket(listener), listen.clone(), Some(place))
        }
    };
    let runtime =
        Builder::new_current_thread().enable_all().max_blocking_threads(CLIENTS_MAX).build()?;
    thread::Builder::new().name("http".to_owned()).spawn(move || {
        if let Err(error) = runtime.block_on(accept(listener, limits, ask)) {
            warn!("no more metrics over HTTP: {error}");
        }
    })?;
    Ok(Http { address, _place: place })
}

async fn accept(listener: Listener, limits: Limits, ask: Ask) -> io::Result<()> {
    match listener {
        Listener::Port(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            accept_from(|| async { Ok(listener.accept().await?.0) }, limits, ask).await
        }
        Listener::Socket(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            accept_from(|| async { Ok(listener.accept().await?.0) }, limits, ask).await
        }
    }
}

async fn accept_from<S, F>(next: impl Fn() -> F, limits: Limits, ask: Ask) -> io::Result<()>
where
    F: Future<Output = io::Result<S>>,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        match next().await {
            Ok(stream) => {
                let ask = ask.clone();
                tokio::spawn(async move {
                    converse(stream, limits, ask).await;
                    drop(place);
                });
            }
            Err(error) => {
                debug!("a client of the metrics is lost: {error}");
                tokio::time::sleep(RESPITE).await;
            }
        }
    }
}

/// One client, one request: so nobody has a place for long.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, limits: Limits, ask: Ask) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let ask = ask.clone();
        async move { Ok::<_, Infallible>(answer(&request, ask).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request)
        .max_buf_size(REQUEST_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    match tokio::time::timeout(limits.connection, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a client of the metrics is cut off: {error}"),
        Err(_) => debug!("a client of the metrics is cut off: it takes too long"),
    }
}

async fn answer(request: &Request<Incoming>, ask: Ask) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET alone\n".to_owned());
        refusal.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    if request.uri().path() != "/metrics" {
        let text = "there is nothing here; the metrics are at /metrics\n";
        return response(StatusCode::NOT_FOUND, TEXT, text.to_owned());
    }
    let accept = request.headers().get_all(ACCEPT).iter();
    let accept: Vec<&str> = accept.filter_map(|value| value.to_str().ok()).collect();
    let dialect = preferred(&accept.join(","));
    let asked = tokio::task::spawn_blocking(move || ask().map(|totals| render(&totals, dialect)));
    match asked.await {
        Ok(Ok(text)) => response(StatusCode::OK, dialect.content_type(), text),
        Ok(Err(why)) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, why + "\n"),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let content_type = hyper::header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// What a client would rather have, by the weights in its `Accept` (RFC 9110, 12.5.1); of two that
/// are as good to it, the more precise one.
fn preferred(accept: &str) -> Dialect {
    let weight = |wanted: &str| {
        let ranges = accept.split(',').map(|range| range.split(';').map(str::trim));
        let mut weights = ranges.filter_map(|mut parts| {
            parts.next().filter(|kind| kind.eq_ignore_ascii_case(wanted))?;
            let given = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
            Some(given.unwrap_or(1.0))
        });
        weights.next()
    };
    let open = weight("application/openmetrics-text").unwrap_or(0.0);
    if open > 0.0 && open >= weight("text/plain").unwrap_or(0.0) {
        Dialect::OpenMetrics
    } else {
        Dialect::Classic
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;
    use crate::request::ServiceTotals;

    #[test]
    fn a_client_gets_the_dialect_it_would_rather_have() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,\
                          text/plain;q=0.4,*/*;q=0.1";
        assert_eq!(preferred(prometheus), Dialect::OpenMetrics);
        assert_eq!(preferred("application/openmetrics-text"), Dialect::OpenMetrics);
        assert_eq!(preferred("text/plain,application/openmetrics-text;q=0.5"), Dialect::Classic);
        assert_eq!(preferred("application/openmetrics-text;q=0"), Dialect::Classic);
        for any in ["", "*/*", "text/html", "text/plain", ";;,q=,"] {
            assert_eq!(preferred(any), Dialect::Classic, "{any}");
        }
    }

    #[allow(clippy::unnecessary_wraps)] // main may be too busy to answer, this is not
    fn totals() -> Result<Totals, String> {
        let service = ServiceTotals { version: "1.2.3".into(), files: 7, ..Default::default() };
        Ok(Totals { service: Some(service), ..Totals::default() })
    }

    fn port(http: &Http) -> SocketAddr {
        match http.address {
            Listen::Port(address) => address,
            Listen::Socket(_) => unreachable!("it was a port"),
        }
    }

    fn on_a_port(limits: Limits, ask: fn() -> Result<Totals, String>) -> Http {
        serve_within(limits, &"127.0.0.1:0".parse().map(Listen::Port).unwrap(), Arc::new(ask))
            .unwrap()
    }

    /// What comes back for a request, which is all that is sent.
    fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        // The answer may come, and the connection go, before all was said.
        stream.write_all(request.as_bytes()).ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        String::from_utf8(answer).unwrap()
    }

    fn get(address: SocketAddr, path: &str) -> String {
        exchange(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    #[test]
    fn metrics_are_given_and_nothing_else() {
        let http = on_a_port(LIMITS, totals);
        let check = |request: &str, status: &str, says: &str| {
            let answer = exchange(port(&http), &format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
            assert!(answer.contains(says), "{request}: {answer}");
            answer
        };
        let metrics = check("GET /metrics", "200", "\ndmfilemap_files 7\n");
        assert!(metrics.contains("content-type: text/plain; version=0.0.4"), "{metrics}");
        let head = check("HEAD /metrics", "200", "content-length: ");
        assert!(!head.contains("dmfilemap_files"), "{head}");
        check("GET /", "404", "at /metrics");
        check("POST /metrics", "405", "allow: GET, HEAD");
        let open = "GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n\r\n";
        let answer = exchange(port(&http), open);
        let says_so = answer.contains("content-type: application/openmetrics-text; version=1.0.0");
        assert!(says_so && answer.ends_with("\n# EOF\n"), "{answer}");
        check("nonsense", "400", "");
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(REQUEST_BYTES_MAX));
        let answer = exchange(port(&http), &long);
        assert!(!answer.contains("200 OK"), "{answer}");
        let http = on_a_port(LIMITS, || Err("busy".to_owned()));
        let answer = get(port(&http), "/metrics");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("busy\n"), "{answer}");
    }

    #[test]
    fn clients_that_are_silent_keep_nobody_out_for_good() {
        let short = Limits { request: Duration::from_millis(50), ..LIMITS };
        let http = on_a_port(short, totals);
        let address = port(&http);
        let silent: Vec<TcpStream> =
            (0..3 * CLIENTS_MAX).map(|_| TcpStream::connect(address).unwrap()).collect();
        // A host that stands still makes this one as slow as those.
        let served = || get(address, "/metrics").starts_with("HTTP/1.1 200");
        assert!((0..10).any(|_| served()), "{} are silent", silent.len());
    }

    #[test]
    fn a_socket_is_for_this_user_and_goes_with_the_server() {
        use std::os::unix::{fs::PermissionsExt as _, net::UnixStream};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let http = serve(&Listen::Socket(path.clone()), Arc::new(totals)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        assert!(io::read_to_string(stream).unwrap().contains("dmfilemap_files 7"));
        drop(http);
        assert!(!path.exists());
    }

    struct Killed(Child);

    impl Drop for Killed {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    /// Waits for the text to appear in what is at the path.
    fn wait_for(address: SocketAddr, path: &str, text: &str) {
        let begun = Instant::now();
        let mut answer = String::new();
        while !answer.contains(text) {
            assert!(begun.elapsed() < Duration::from_secs(120), "{path}: {answer}");
            thread::sleep(Duration::from_millis(100));
            if TcpStream::connect(address).is_ok() {
                let request = format!("GET {path} HTTP/1.0\r\n\r\n");
                answer = exchange(address, &request);
            }
        }
    }

    /// A real Prometheus, which asks for `OpenMetrics`, and is told so.
    #[test]
    fn prometheus_reads_it() {
        if Command::new("prometheus").arg("--version").stderr(Stdio::null()).output().is_err() {
            assert!(std::env::var_os("CI").is_none(), "Debian's package prometheus is missing");
            eprintln!("skipped: Debian's package prometheus is missing");
            return;
        }
        let http = on_a_port(LIMITS, totals);
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let target = port(&http);
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\n\
                 scrape_configs: [{{job_name: x, static_configs: [{{targets: ['{target}']}}]}}]\n"
            ),
        )
        .unwrap();
        let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).unwrap();
        let arguments = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.path().join("data").display()),
            format!("--web.listen-address={free}"),
        ];
        let mut command = Command::new("prometheus");
        let _prometheus = Killed(command.args(arguments).stderr(Stdio::null()).spawn().unwrap());
        wait_for(free, "/api/v1/query?query=up", "\"1\"]");
        wait_for(free, "/api/v1/query?query=dmfilemap_files", "\"7\"]");
        wait_for(free, "/api/v1/metadata?metric=dmfilemap_remaps", "\"type\":\"counter\"");
    }
}
