use super::*;
use crate::config::{Env, Layers};
use crate::metrics::Metrics;
use crate::scope::TaskScope;
use crate::shutdown::Phase;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn config<const N: usize>(env: [(&str, &str); N]) -> SystemConfig {
    SystemConfig::resolve(&mut Layers::new(&Env::from(env), None), SystemFlags::default()).unwrap()
}

struct Running {
    scope: TaskScope,
    state: SystemState,
    metrics: Metrics,
    address: SocketAddr,
}

async fn running(config: SystemConfig) -> Running {
    let scope = TaskScope::root(tokio::runtime::Handle::current());
    let (state, metrics) = (SystemState::new(config.starting), Metrics::new());
    let config = SystemConfig { host: "127.0.0.1".to_owned(), port: Some(0), ..config };
    let server = SystemServer::start(&scope, &config, state.clone(), metrics.clone()).await.unwrap().unwrap();
    Running { scope, state, metrics, address: server.address() }
}

impl Running {
    /// Sends a request with these header lines; returns code and body.
    async fn ask(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n"
        );
        stream.write_all(format!("{head}{headers}\r\n{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path, "", "").await
    }

    async fn code(&self, path: &str) -> u16 {
        self.get(path).await.0
    }
}

fn json_of(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {body:?}"))
}

#[tokio::test]
async fn readiness_follows_status_endpoints_and_phase_and_liveness_does_not() {
    let server = running(config([])).await;
    assert_eq!(server.code("/ready").await, 503);
    server.state.set_status(HealthStatus::Ready);
    assert_eq!(server.code("/ready").await, 200);
    server.state.set_endpoint("generate", HealthStatus::NotReady);
    server.state.set_endpoint("embed", HealthStatus::Ready);
    let (code, body) = server.get("/health").await;
    assert_eq!(code, 503);
    let report = json_of(&body);
    assert_eq!(report["status"], "notready");
    assert_eq!(report["endpoints"], json!({ "embed": "ready", "generate": "notready" }));
    assert!(report["uptime"]["secs"].is_u64() && report["uptime"]["nanos"].is_u64());
    server.state.remove_endpoint("generate");
    assert_eq!(server.code("/health").await, 200);
    let (phase, following) = tokio::sync::watch::channel(Phase::Running);
    server.state.follow_phase(following);
    assert_eq!(server.code("/health").await, 200);
    phase.send_replace(Phase::Leaving);
    assert_eq!(server.code("/health").await, 503);
    assert_eq!(server.code("/live").await, 200);
}

#[tokio::test]
async fn the_paths_of_the_checks_can_be_chosen() {
    let server = running(config([
        ("DYN_SYSTEM_HEALTH_PATH", "/healthz"),
        ("DYN_SYSTEM_LIVE_PATH", "/livez"),
        ("DYN_SYSTEM_STARTING_HEALTH_STATUS", "ready"),
    ]))
    .await;
    assert_eq!((server.code("/healthz").await, server.code("/livez").await), (200, 200));
    assert_eq!(server.ask("POST", "/healthz", "", "").await.0, 405);
    assert_eq!(server.code("/nothing").await, 404);
}

#[tokio::test]
async fn metrics_are_text_and_metadata_is_what_was_given() {
    let server = running(config([])).await;
    server.metrics.counter("things_total", "Things").unwrap().inc_by(3);
    let (code, body) = server.get("/metrics").await;
    assert!(code == 200 && body.contains("\nthings_total 3\n"), "{body}");
    assert_eq!(server.code("/metadata").await, 404);
    server.state.set_metadata(|| json!({ "a": 1 }));
    assert_eq!(json_of(&server.get("/metadata").await.1), json!({ "a": 1 }));
}

#[tokio::test]
async fn engine_routes_take_json_or_nothing_by_any_method() {
    let server = running(config([])).await;
    let routes = server.state.routes();
    routes.register("echo", |body| async { Ok(body) });
    routes.register("/control/fail", |_| async { Err("out of luck".to_owned()) });
    assert_eq!(server.ask("POST", "/engine/echo", "", "{\"a\": [1]}").await, (200, "{\"a\":[1]}".to_owned()));
    assert_eq!(server.get("/engine/echo").await, (200, "{}".to_owned()));
    let (code, body) = server.ask("POST", "/engine/echo", "", "{oops").await;
    assert_eq!((code, &json_of(&body)["error"]), (400, &json!("Invalid JSON")));
    let (code, body) = server.ask("PUT", "/engine/control/fail", "", "").await;
    assert_eq!((code, json_of(&body)), (500, json!({ "error": "Handler error", "message": "out of luck" })));
    assert!(routes.remove("echo"));
    let (code, body) = server.get("/engine/echo").await;
    assert_eq!((code, &json_of(&body)["error"]), (404, &json!("Route not found")));
}

#[tokio::test]
async fn adapters_are_loaded_by_a_path_of_their_own_where_that_is_enabled() {
    let load = r#"{"lora_name": "org/sql", "source": {"uri": "s3://bucket/sql"}}"#;
    let off = running(config([])).await;
    assert_eq!(off.get("/v1/loras").await.0, 404);
    let server = running(config([("DYN_LORA_ENABLED", "yes")])).await;
    assert_eq!(server.get("/v1/loras").await.0, 404, "no engine here has adapters");
    let routes = server.state.routes();
    routes.register("list_loras", |_| async { Ok(json!({"status": "success", "count": 0, "loras": {}})) });
    routes.register("load_lora", |body| async move { Ok(body) });
    routes.register("unload_lora", |body| async move {
        Ok(json!({"status": "error", "message": format!("no {}", body["lora_name"])}))
    });
    let (code, body) = server.get("/v1/loras").await;
    assert_eq!((code, &json_of(&body)["status"]), (200, &json!("success")));
    let (code, body) = server.ask("POST", "/v1/loras", "", load).await;
    assert_eq!((code, json_of(&body)), (200, json_of(load)));
    for wrong in ["", "{}", r#"{"lora_name": "a"}"#, r#"{"lora_name": 1, "source": {"uri": "x"}}"#, "{"] {
        assert_eq!(server.ask("POST", "/v1/loras", "", wrong).await.0, 400, "{wrong}");
    }
    let (code, body) = server.ask("DELETE", "/v1/loras/org/sql", "", "").await;
    assert_eq!((code, &json_of(&body)["message"]), (500, &json!("no \"org/sql\"")));
    assert_eq!(server.ask("DELETE", "/v1/loras", "", "").await.0, 405);
    assert_eq!(server.get("/v1/loras/org/sql").await.0, 405);
    assert_eq!(server.ask("GET", "/v1/loras", "origin: http://elsewhere\r\n", "").await.0, 403);
    let token = running(config([("DYN_LORA_ENABLED", "1"), ("DYN_SYSTEM_ADMIN_TOKEN", "s3cret")])).await;
    for method in ["GET", "POST"] {
        assert_eq!(token.ask(method, "/v1/loras", "", load).await.0, 401);
    }
    assert_eq!(token.ask("DELETE", "/v1/loras/a", "", "").await.0, 401);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let server = running(config([])).await;
    server.state.routes().register("echo", |body| async { Ok(body) });
    let large = format!("\"{}\"", "x".repeat(5 << 20));
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("POST /engine/echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", large.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer and close before all of it is sent.
    let _ = stream.write_all(large.as_bytes()).await;
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
}

#[tokio::test]
async fn with_a_token_only_its_bearer_is_answered() {
    let server = running(config([("DYN_SYSTEM_ADMIN_TOKEN", "s3cret")])).await;
    server.state.routes().register("echo", |body| async { Ok(body) });
    for headers in ["", "authorization: Bearer wrong\r\n", "authorization: Basic s3cret\r\n"] {
        let (code, body) = server.ask("POST", "/engine/echo", headers, "").await;
        assert_eq!(code, 401);
        assert!(json_of(&body)["message"].as_str().unwrap().contains("DYN_SYSTEM_ADMIN_TOKEN"));
    }
    assert_eq!(server.ask("POST", "/engine/echo", "authorization: bearer s3cret\r\n", "").await.0, 200);
}

#[test]
fn without_a_token_only_this_host_is_answered() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let access = AdminAccess::Loopback;
    for here in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(access.check(ip(here), None, false), Ok(()));
        assert_eq!(access.check(ip(here), None, true), Err(Refusal::WebPage));
    }
    for elsewhere in ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "0.0.0.0"] {
        assert_eq!(access.check(ip(elsewhere), Some(b"Bearer x"), false), Err(Refusal::NotLoopback));
        assert_eq!(AdminAccess::Open.check(ip(elsewhere), None, true), Ok(()));
    }
}

#[tokio::test]
async fn a_cancelled_scope_ends_the_server() {
    let server = running(config([])).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(server.code("/live").await, 200);
    server.scope.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.scope.closed()).await.unwrap();
    assert_eq!(idle.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_says_what_to_do() {
    let server = running(config([])).await;
    let taken = SystemConfig {
        host: "127.0.0.1".to_owned(),
        port: Some(server.address.port()),
        ..config([("DYN_SYSTEM_PORT", "1")])
    };
    let error =
        SystemServer::start(&server.scope, &taken, server.state.clone(), Metrics::new()).await.unwrap_err();
    assert!(error.to_string().contains("DYN_SYSTEM_PORT"), "{error}");
}

#[tokio::test]
async fn an_ipv6_host_may_have_brackets_or_not() {
    for host in ["[::1]", "::1"] {
        let config = config([("DYN_SYSTEM_HOST", host), ("DYN_SYSTEM_PORT", "0")]);
        let scope = TaskScope::root(tokio::runtime::Handle::current());
        match SystemServer::start(&scope, &config, SystemState::new(config.starting), Metrics::new()).await {
            Ok(server) => assert!(server.unwrap().address().is_ipv6()),
            // A host without IPv6 refuses the address, not its spelling.
            Err(SystemError::Bind { source, .. }) => {
                assert_eq!(source.kind(), std::io::ErrorKind::AddrNotAvailable);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn there_is_no_server_unless_a_port_is_set() {
    let scope = TaskScope::root(tokio::runtime::Handle::current());
    for config in [config([]), config([("DYN_SYSTEM_PORT", "-1")])] {
        let state = SystemState::new(config.starting);
        assert!(SystemServer::start(&scope, &config, state, Metrics::new()).await.unwrap().is_none());
    }
}

#[test]
fn the_whole_range_of_ports_is_taken_and_no_more() {
    assert_eq!(config([("DYN_SYSTEM_PORT", "65535")]).port, Some(65535));
    let env = Env::from([("DYN_SYSTEM_PORT", "65536")]);
    let error = SystemConfig::resolve(&mut Layers::new(&env, None), SystemFlags::default()).unwrap_err();
    assert!(error.to_string().contains("DYN_SYSTEM_PORT=\"65536\""), "{error}");
}
