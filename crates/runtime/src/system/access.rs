use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Who may call administration routes.
#[derive(Clone, PartialEq, Eq)]
pub enum AdminAccess {
    /// Peers on this host, unless a web page is behind the request.
    Loopback,
    /// Whoever sends `Authorization: Bearer <token>`, from wherever.
    Token(Arc<str>),
    /// Everybody.
    Open,
}

impl fmt::Debug for AdminAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AdminAccess::Loopback => "Loopback",
            AdminAccess::Token(_) => "Token(********)",
            AdminAccess::Open => "Open",
        })
    }
}

/// Why a request for an administration route is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// From another host.
    #[error(
        "administration routes answer peers on this host only; set DYN_SYSTEM_ADMIN_TOKEN and send it as a bearer token, or give --system-admin open"
    )]
    NotLoopback,
    /// A browser sent it for a web page, whose author need not be on this host.
    #[error(
        "administration routes do not answer web pages; set DYN_SYSTEM_ADMIN_TOKEN, or give --system-admin open"
    )]
    WebPage,
    /// No token, or another.
    #[error(
        "administration routes want the token of DYN_SYSTEM_ADMIN_TOKEN, as Authorization: Bearer <token>"
    )]
    Token,
}

impl AdminAccess {
    /// Decides on a request by its peer's address, its `authorization` header and whether it has an `origin` header.
    pub fn check(&self, peer: IpAddr, authorization: Option<&[u8]>, has_origin: bool) -> Result<(), Refusal> {
        match self {
            AdminAccess::Open => Ok(()),
            AdminAccess::Token(token) => {
                let given = authorization.and_then(bearer).ok_or(Refusal::Token)?;
                if same(given, token.as_bytes()) { Ok(()) } else { Err(Refusal::Token) }
            }
            AdminAccess::Loopback if !peer.to_canonical().is_loopback() => Err(Refusal::NotLoopback),
            AdminAccess::Loopback if has_origin => Err(Refusal::WebPage),
            AdminAccess::Loopback => Ok(()),
        }
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
}

/// Compares in a time that does not tell where the first difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}
