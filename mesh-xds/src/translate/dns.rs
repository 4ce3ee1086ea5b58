//! How the names of a cluster are resolved. Source: Envoy `Cluster.dns_refresh_rate`, `dns_failure_refresh_rate`,
//! `dns_lookup_family`.

use mesh_core::config::{Cluster, Discovery, Dns, DnsFamily};

use super::{
    read::{Ignored, Wrong, wrong},
    value,
};
use crate::proto::envoy::config::cluster::v3::{
    Cluster as Message,
    cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, RefreshRate},
};

pub(super) fn decode(message: &Message, ignored: &mut Ignored) -> Result<Dns, Wrong> {
    let is_of_names = matches!(
        message.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(kind))
            if kind == i32::from(DiscoveryType::StrictDns) || kind == i32::from(DiscoveryType::LogicalDns)
    );
    if !is_of_names {
        for (is_set, field) in [
            (message.dns_refresh_rate.is_some(), "dns_refresh_rate"),
            (message.dns_failure_refresh_rate.is_some(), "dns_failure_refresh_rate"),
            (message.dns_lookup_family != 0, "dns_lookup_family"),
        ] {
            if is_set {
                ignored.add("", field);
            }
        }
        return Ok(Dns::default());
    }
    let refresh = value::positive(message.dns_refresh_rate, "dns_refresh_rate")?;
    let after_failure = match &message.dns_failure_refresh_rate {
        None => None,
        Some(RefreshRate { base_interval, max_interval }) => {
            const BASE: &str = "dns_failure_refresh_rate.base_interval";
            const MAX: &str = "dns_failure_refresh_rate.max_interval";
            let base = value::positive(*base_interval, BASE)?.ok_or_else(|| wrong(BASE, "is missing"))?;
            // Envoy: ten times the base unless told.
            let max = value::positive(*max_interval, MAX)?.unwrap_or_else(|| base.saturating_mul(10));
            if max < base {
                return Err(wrong(MAX, "is below base_interval"));
            }
            Some((base, max))
        }
    };
    let family = match DnsLookupFamily::try_from(message.dns_lookup_family) {
        Ok(DnsLookupFamily::Auto) => DnsFamily::Auto,
        Ok(DnsLookupFamily::V4Only) => DnsFamily::V4Only,
        Ok(DnsLookupFamily::V6Only) => DnsFamily::V6Only,
        Ok(DnsLookupFamily::V4Preferred) => DnsFamily::V4Preferred,
        Ok(DnsLookupFamily::All) => DnsFamily::All,
        Err(_) => return Err(wrong("dns_lookup_family", format!("{} is no family", message.dns_lookup_family))),
    };
    Ok(Dns { refresh: refresh.unwrap_or_else(|| Dns::default().refresh), after_failure, family })
}

pub(super) fn encode(cluster: &Cluster, message: &mut Message) {
    if !matches!(cluster.discovery, Discovery::StrictDns(_) | Discovery::LogicalDns(_)) {
        return;
    }
    let Dns { refresh, after_failure, family } = cluster.dns;
    message.dns_refresh_rate = (refresh != Dns::default().refresh).then(|| value::encode_duration(refresh));
    message.dns_failure_refresh_rate = after_failure.map(|(base, max)| RefreshRate {
        base_interval: Some(value::encode_duration(base)),
        max_interval: Some(value::encode_duration(max)),
    });
    let family = match family {
        DnsFamily::Auto => DnsLookupFamily::Auto,
        DnsFamily::V4Only => DnsLookupFamily::V4Only,
        DnsFamily::V6Only => DnsLookupFamily::V6Only,
        DnsFamily::V4Preferred => DnsLookupFamily::V4Preferred,
        DnsFamily::All => DnsLookupFamily::All,
    };
    message.dns_lookup_family = family.into();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::time::Duration;

    use prost::Message as _;

    use super::*;
    use crate::translate;

    /// NR5: how names are resolved survives the round trip, is Envoy's when absent, and is ignored where there are no names.
    #[test]
    fn settings_of_names_survive_the_round_trip() {
        let second = Duration::from_secs(1);
        let families = [DnsFamily::Auto, DnsFamily::V4Only, DnsFamily::V6Only, DnsFamily::V4Preferred, DnsFamily::All];
        for (family, after_failure) in families.into_iter().zip([None, Some((second, second * 3))].into_iter().cycle())
        {
            let dns = Dns { refresh: second * 7, after_failure, family };
            let discovery = Discovery::StrictDns(vec![("a.test".to_owned(), 80)]);
            let cluster = Cluster { name: "a".into(), discovery, dns, ..Cluster::default() };
            let decoded = translate::cluster(&super::super::cluster::encode(&cluster).encode_to_vec().into()).unwrap();
            assert_eq!(decoded.value.dns, dns);
            assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
        }
        let of_type = |kind: DiscoveryType| Message {
            name: "a".to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
            ..Message::default()
        };
        let absent = translate::cluster(&of_type(DiscoveryType::StrictDns).encode_to_vec().into()).unwrap();
        assert_eq!(absent.value.dns, Dns { family: DnsFamily::Auto, ..Dns::default() });
        let fixed = Message { dns_lookup_family: 1, ..of_type(DiscoveryType::Static) };
        assert_eq!(translate::cluster(&fixed.encode_to_vec().into()).unwrap().ignored, ["dns_lookup_family"]);
        let base = RefreshRate { base_interval: None, max_interval: None };
        let bad = Message { dns_failure_refresh_rate: Some(base), ..of_type(DiscoveryType::StrictDns) };
        assert!(translate::cluster(&bad.encode_to_vec().into()).unwrap_err().field.contains("base_interval"));
    }
}
