//! Keys as paths: `v1/<bucket>/<key>`, the layout that tools of the field know.

use crate::discovery::RecordKey;

/// Where a kind of record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Bucket {
    Instances,
    Models,
    EventChannels,
}

impl Bucket {
    pub(super) const ALL: [Bucket; 3] = [Bucket::Instances, Bucket::Models, Bucket::EventChannels];

    pub(super) fn name(self) -> &'static str {
        match self {
            Bucket::Instances => "instances",
            Bucket::Models => "mdc",
            Bucket::EventChannels => "event_channels",
        }
    }
}

impl RecordKey {
    pub(super) fn bucket(&self) -> Bucket {
        match self {
            RecordKey::Endpoint(..) => Bucket::Instances,
            RecordKey::Model(..) => Bucket::Models,
            RecordKey::EventChannel(..) => Bucket::EventChannels,
        }
    }

    /// The path inside the bucket, e.g. `ns/comp/ep/1a2b`.
    pub fn path(&self) -> String {
        match self {
            RecordKey::Endpoint(endpoint, id) | RecordKey::Model(endpoint, id, None) => {
                format!("{endpoint}/{id:x}")
            }
            RecordKey::Model(endpoint, id, Some(suffix)) => format!("{endpoint}/{id:x}/{suffix}"),
            RecordKey::EventChannel(scope, topic, id) => {
                let mut path = format!("namespace/{}", encode_segment(&scope.namespace));
                if let Some(component) = &scope.component {
                    path.push_str("/component/");
                    path.push_str(&encode_segment(component));
                }
                format!("{path}/topic/{}/{id:x}", encode_segment(topic))
            }
        }
    }

    /// The name of the file that holds the record: the path, each byte but letters and digits percent-encoded.
    pub(super) fn file_name(&self) -> String {
        percent_encode(&self.path(), |byte| byte.is_ascii_alphanumeric())
    }
}

fn encode_segment(segment: &str) -> String {
    percent_encode(segment, |byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn percent_encode(text: &str, literal: impl Fn(u8) -> bool) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if literal(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use crate::discovery::{EventScope, RecordKey};
    use crate::identity::{EndpointId, WorkerId};

    #[test]
    fn keys_lie_where_tools_expect_them() {
        let id = WorkerId::from_bits(0x1a2b);
        let endpoint = RecordKey::Endpoint(EndpointId::new("ns", "comp", "ep"), id);
        assert_eq!((endpoint.bucket().name(), endpoint.path().as_str()), ("instances", "ns/comp/ep/1a2b"));
        assert_eq!(endpoint.file_name(), "ns%2Fcomp%2Fep%2F1a2b");
        let adapter = RecordKey::Model(EndpointId::new("ns", "c-1", "ep"), id, Some("lora".into()));
        assert_eq!(adapter.file_name(), "ns%2Fc%2D1%2Fep%2F1a2b%2Flora");
        let channel = RecordKey::EventChannel(EventScope::component("n.s", "c"), "kv-events".into(), id);
        assert_eq!(channel.path(), "namespace/n%2Es/component/c/topic/kv-events/1a2b");
        assert_eq!(channel.file_name(), "namespace%2Fn%252Es%2Fcomponent%2Fc%2Ftopic%2Fkv%2Devents%2F1a2b");
    }
}
