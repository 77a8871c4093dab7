//! The slot of a key in its scope, within the application's namespace.

use std::sync::Arc;

use http::request::Parts;

use super::digest::{NAMESPACE, ScopeDigest, TagKey};
use super::read::{Doubts, ScopeUnavailable};
use super::source::{ScopeSource, Source};
use super::values::ScopeValues;
use crate::error::ConfigError;
use crate::request::slot::{ScopeTag, Slot, SlotError};

/// A key in its scope.
#[derive(Debug)]
pub(crate) struct Scoped {
    pub(crate) slot: Slot,
    pub(crate) tag: ScopeTag,
    pub(crate) doubts: Doubts,
}

/// The source of the scope, within the application's namespace.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScopeRules {
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) source: ScopeSource,
    pub(crate) tag_key: TagKey,
}

impl ScopeRules {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.namespace.as_deref() == Some("") {
            return Err(ConfigError::new(
                "namespace",
                "the namespace is empty; use the application's name, or omit the option",
            ));
        }
        self.source.sources().iter().try_for_each(|source| match source {
            Source::Header(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        })
    }

    /// Returns the slot of a key whose scope has these values.
    pub(crate) fn slot_of(&self, values: &ScopeValues<'_>, key: &[u8]) -> Result<Slot, SlotError> {
        Ok(self.digest_of(values)?.slot(key))
    }

    /// Returns the tag of the scope that has these values.
    pub(crate) fn tag_of(&self, values: &ScopeValues<'_>) -> Result<ScopeTag, SlotError> {
        Ok(self.digest_of(values)?.tag())
    }

    fn digest_of(&self, values: &ScopeValues<'_>) -> Result<ScopeDigest, SlotError> {
        let sources = self.source.sources();
        if sources.len() != values.0.len() {
            return Err(SlotError::ScopeValues {
                expected: sources.len(),
                given: values.0.len(),
            });
        }
        let mut digest = self.digest();
        for (source, value) in sources.iter().zip(&values.0) {
            digest.begin(source, sources.len());
            source.write_value(*value, &mut digest);
        }
        Ok(digest)
    }

    /// Returns the slot of a key in a request's scope.
    pub(crate) fn slot(&self, parts: &Parts, key: &[u8]) -> Result<Scoped, ScopeUnavailable> {
        let mut digest = self.digest();
        let sources = self.source.sources();
        let mut doubts = Doubts::default();
        for source in sources {
            digest.begin(source, sources.len());
            source.write(parts, &mut digest, &mut doubts)?;
        }
        // A missing `Authorization` header does not matter if the application found an identity.
        if doubts.overlooks_cookie {
            let is_identity = |source: &Source| matches!(source, Source::Extension(..) | Source::Head(_));
            doubts.overlooks_cookie = !sources.iter().any(is_identity);
        }
        let tag = digest.tag();
        let slot = digest.slot(key);
        Ok(Scoped { slot, tag, doubts })
    }

    fn digest(&self) -> ScopeDigest {
        let mut digest = ScopeDigest::new(&self.tag_key);
        if let Some(namespace) = &self.namespace {
            digest.field(NAMESPACE, namespace.as_bytes());
        }
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn rules(source: &ScopeSource) -> ScopeRules {
        ScopeRules {
            source: source.clone(),
            ..ScopeRules::default()
        }
    }

    fn scoped(source: &ScopeSource, parts: &Parts, key: &str) -> Scoped {
        rules(source).slot(parts, key.as_bytes()).unwrap()
    }

    fn slot(source: &ScopeSource, headers: &[(&str, &str)], key: &str) -> Slot {
        scoped(source, &parts(headers), key).slot
    }

    fn slot_of<'a>(source: &ScopeSource, values: impl Into<ScopeValues<'a>>, key: &str) -> Slot {
        rules(source).slot_of(&values.into(), key.as_bytes()).unwrap()
    }

    #[test]
    fn golden_slots() {
        // Stores save operations under these names.
        let hex = |source: &ScopeSource, headers: &[(&str, &str)]| slot(source, headers, "k").to_hex();
        let by_header = hex(&ScopeSource::default(), &[("authorization", "Bearer a")]);
        assert_eq!(
            by_header,
            "82bab9af868bbe77d288e3dbaf5b62dd6c0d895419bf90ad05c99abe57677e68"
        );
        assert_eq!(
            hex(&ScopeSource::default(), &[]),
            "1bcd266c17b265b036825f7f594b691531ef23849156a473f5f96aca4094f95b"
        );
        assert_eq!(
            hex(&ScopeSource::shared_by_all("a"), &[]),
            "8893fd7d8e3e69275ec581174c627462d410f6ef278f545f6e932c3258f6d1b0"
        );
        let combined = ScopeSource::default().and(ScopeSource::host());
        let headers = [("authorization", "Bearer a"), ("host", "example.com")];
        assert_eq!(
            hex(&combined, &headers),
            "e63468f8220fa2a66b8119d8ae3e6f343d0f58a9f83801b9e811b18167a0b226"
        );
    }

    #[test]
    fn contract_2_6_crafted_pairs_do_not_collide() {
        let scope = ScopeSource::default();
        let pairs = [
            slot(&scope, &[], "k"),
            slot(&scope, &[("authorization", "")], "k"),
            slot(&scope, &[("authorization", "a")], "k"),
            slot(&scope, &[("authorization", "a"), ("authorization", "")], "k"),
            slot(&scope, &[("authorization", "ak")], "k"),
            slot(&scope, &[("authorization", "a")], "kk"),
            slot(&ScopeSource::shared_by_all("a"), &[], "k"),
            slot(&ScopeSource::from_head(|_| Ok("a".into())), &[], "k"),
        ];
        let distinct: std::collections::HashSet<_> = pairs.iter().collect();
        assert_eq!(distinct.len(), pairs.len());
    }

    #[test]
    fn the_slot_of_scope_values_is_the_slot_of_the_matching_request() {
        let header = ScopeSource::default();
        let sent = slot(&header, &[("authorization", "Bearer a")], "k");
        assert_eq!(slot_of(&header, Some("Bearer a"), "k"), sent);
        assert_eq!(slot_of(&header, None, "k"), slot(&header, &[], "k"));
        let closure = ScopeSource::from_head(|_| Ok("a".into()));
        assert_eq!(slot_of(&closure, Some("a"), "k"), slot(&closure, &[], "k"));
        let shared = ScopeSource::shared_by_all("a");
        assert_eq!(slot_of(&shared, None, "k"), slot(&shared, &[], "k"));
        let extension = ScopeSource::extension(|name: &String| name.clone());
        let mut parts = parts(&[]);
        parts.extensions.insert("a".to_owned());
        let found = scoped(&extension, &parts, "k").slot;
        assert_eq!(slot_of(&extension, Some("a"), "k"), found);
        assert!(found.to_hex().starts_with(&found.to_string()) && found.to_hex().len() == 64);
    }

    #[test]
    fn contract_3_1_and_3_2_the_scope_separates_callers_and_nothing_else_does() {
        let scope = ScopeSource::default();
        let acme = slot(&scope, &[("authorization", "Bearer acme")], "k");
        assert_ne!(acme, slot(&scope, &[("authorization", "Bearer globex")], "k"));
        assert_eq!(
            acme,
            slot(&scope, &[("authorization", "Bearer acme"), ("x-trace", "1")], "k")
        );
        let own = ScopeSource::header("x-account");
        assert_ne!(
            slot(&own, &[("x-account", "a")], "k"),
            slot(&own, &[("x-account", "b")], "k")
        );
    }

    #[test]
    fn the_tag_depends_on_the_scope_and_not_on_the_key() {
        let scope = ScopeSource::default();
        let tag = |headers: &[(&str, &str)], key: &str| scoped(&scope, &parts(headers), key).tag;
        let acme = tag(&[("authorization", "acme")], "k");
        assert_eq!(acme, tag(&[("authorization", "acme")], "other"));
        assert_ne!(acme, tag(&[("authorization", "globex")], "k"));
        assert_ne!(acme, tag(&[], "k"));
    }

    #[test]
    fn golden_tags() {
        // Stores save these tags, and other processes look for the same tags.
        let tag = |source: &ScopeSource, headers: &[(&str, &str)], secret: Option<&[u8]>| {
            let rules = ScopeRules {
                tag_key: secret.map_or_else(TagKey::default, |secret| TagKey::of_secret(secret).unwrap()),
                ..rules(source)
            };
            crate::digest::hex(rules.slot(&parts(headers), b"k").unwrap().tag.as_bytes())
        };
        let scope = ScopeSource::default();
        let bearer = [("authorization", "Bearer a")];
        let secret: &[u8] = &[7; 32];
        // This value was also computed with a different implementation of SipHash.
        assert_eq!(tag(&scope, &bearer, None), "a7cbd09e7e80c9d1e5a2551fa9718e4d");
        assert_eq!(tag(&scope, &bearer, Some(secret)), "edc351db751d2f8656a80fe02708432d");
        assert_eq!(tag(&scope, &[], Some(secret)), "247a7cf7ff8ee28e60b09522d327300a");
        assert_eq!(
            tag(&ScopeSource::shared_by_all("a"), &[], Some(secret)),
            "d00834f7f1a8b862a739800bd7bcb98c"
        );
    }

    #[test]
    fn the_tag_of_scope_values_is_the_tag_of_the_matching_request() {
        let scope = rules(&ScopeSource::default().and(ScopeSource::header("stripe-account")));
        let headers = [("authorization", "Bearer a"), ("stripe-account", "acct_1")];
        let sent = scope.slot(&parts(&headers), b"k").unwrap().tag;
        assert_eq!(scope.tag_of(&["Bearer a", "acct_1"].into()).unwrap(), sent);
        assert_ne!(scope.tag_of(&[Some("Bearer a"), None].into()).unwrap(), sent);
        let wrong = scope.tag_of(&Some("Bearer a").into());
        assert_eq!(wrong, Err(SlotError::ScopeValues { expected: 2, given: 1 }));
        let named = ScopeRules {
            namespace: Some("billing".into()),
            ..scope.clone()
        };
        assert_ne!(
            named.slot(&parts(&headers), b"k").unwrap().tag,
            sent,
            "another application's"
        );
    }

    #[test]
    fn moving_a_byte_between_scopes_changes_the_tag() {
        let scope = rules(&ScopeSource::header("a").and(ScopeSource::header("b")));
        let tag = |a, b| scope.tag_of(&[a, b].into()).unwrap();
        let tags = [
            tag(Some("xy"), Some("z")),
            tag(Some("x"), Some("yz")),
            tag(Some("xyz"), None),
            tag(Some("xyz"), Some("")),
            tag(None, Some("xyz")),
        ];
        let distinct: std::collections::HashSet<_> = tags.iter().collect();
        assert_eq!(distinct.len(), tags.len());
    }

    #[test]
    fn contract_3_3_a_scope_that_cannot_be_determined_is_an_error() {
        #[derive(Clone)]
        struct Tenant(u8);
        let scope = ScopeSource::extension(|tenant: &Tenant| tenant.0.to_string());
        let mut parts = parts(&[]);
        let scope = rules(&scope);
        let error = scope.slot(&parts, b"k").unwrap_err().0.to_string();
        assert!(error.contains("Tenant"), "{error}");
        parts.extensions.insert(Tenant(1));
        let one = scope.slot(&parts, b"k").unwrap().slot;
        parts.extensions.insert(Tenant(2));
        assert_ne!(one, scope.slot(&parts, b"k").unwrap().slot);
        let refusing = rules(&ScopeSource::from_head(|_| Err("no session".into())));
        assert!(refusing.slot(&parts, b"k").is_err());
    }

    #[test]
    fn contract_3_2_a_cookie_without_authorization_is_noticed() {
        let overlooks =
            |scope: &ScopeSource, headers: &[(&str, &str)]| scoped(scope, &parts(headers), "k").doubts.overlooks_cookie;
        let scope = ScopeSource::default();
        assert!(overlooks(&scope, &[("cookie", "sid=1")]));
        assert!(!overlooks(&scope, &[("cookie", "sid=1"), ("authorization", "x")]));
        assert!(!overlooks(&scope, &[]));
        assert!(!overlooks(&ScopeSource::header("cookie"), &[("cookie", "sid=1")]));
        assert!(!overlooks(&ScopeSource::header("x-account"), &[("cookie", "sid=1")]));
        let with_host = ScopeSource::default().and(ScopeSource::host());
        assert!(overlooks(&with_host, &[("cookie", "sid=1"), ("host", "a")]));
        let with_user = ScopeSource::default().and(ScopeSource::from_head(|_| Ok("user".into())));
        assert!(!overlooks(&with_user, &[("cookie", "sid=1")]));
    }

    #[test]
    fn contract_3_2_combined_scopes_are_not_confusable() {
        let header = ScopeSource::header;
        let (auth, account) = (ScopeSource::default(), header("stripe-account"));
        let two = auth.clone().and(account.clone());
        let swapped = account.clone().and(auth.clone());
        let other = auth.clone().and(header("x-account"));
        let three = two.clone().and(ScopeSource::host());
        let of = |source: &ScopeSource, headers: &[(&str, &str)]| slot(source, headers, "k");
        let (a, b) = (("authorization", "A"), ("stripe-account", "B"));
        let slots = [
            of(&two, &[]),
            of(&two, &[a]),
            of(&two, &[b]),
            of(&two, &[a, b]),
            of(&two, &[a, a]),
            of(&two, &[("authorization", "AB")]),
            of(&two, &[a, ("stripe-account", "")]),
            of(&swapped, &[a, b]),
            of(&other, &[a, ("x-account", "B")]),
            of(&other, &[a]),
            of(&three, &[a, b]),
            of(&three, &[a, b, ("host", "B")]),
            of(&three, &[a, ("host", "B")]),
            of(&auth, &[a]),
            of(&auth, &[a, ("authorization", "B")]),
            of(&auth, &[]),
            of(&account, &[b]),
            of(&ScopeSource::shared_by_all("A").and(account.clone()), &[b]),
            of(&ScopeSource::from_head(|_| Ok("A".into())).and(account.clone()), &[b]),
        ];
        let distinct: std::collections::HashSet<_> = slots.iter().collect();
        assert_eq!(distinct.len(), slots.len());
        // How scopes are nested does not matter.
        let right = auth.and(account.and(ScopeSource::host()));
        assert_eq!(of(&right, &[a, b]), of(&three, &[a, b]));
        assert_eq!(
            format!("{two:?}"),
            "ScopeSource::header(\"authorization\") and ScopeSource::header(\"stripe-account\")"
        );
    }

    #[test]
    fn contract_3_2_the_slot_of_combined_values_is_the_one_of_their_requests() {
        let scope = ScopeSource::default()
            .and(ScopeSource::host())
            .and(ScopeSource::shared_by_all("s"));
        let sent = slot(&scope, &[("authorization", "bearer a"), ("host", "A.Example:80")], "k");
        assert_eq!(
            slot_of(&scope, [Some("Bearer a"), Some("a.example:80"), None], "k"),
            sent
        );
        assert_eq!(slot_of(&scope, ["BEARER a", "a.EXAMPLE:80", "s"], "k"), sent);
        let anonymous = slot(&scope, &[("host", "a")], "k");
        assert_eq!(slot_of(&scope, [None, Some("a"), None], "k"), anonymous);
        for wrong in [ScopeValues::from(Some("Bearer a")), ["a", "b"].into(), ["a"; 4].into()] {
            let error = rules(&scope).slot_of(&wrong, b"k").unwrap_err().to_string();
            assert!(error.contains('3'), "{error}");
        }
    }

    #[test]
    fn contract_3_2_the_host_is_the_authority_or_the_header() {
        let scope = ScopeSource::host();
        let at = |uri: &str, host: Option<&str>| {
            let mut parts = parts(&[]);
            parts.uri = uri.parse().unwrap();
            if let Some(host) = host {
                parts.headers.insert("host", host.parse().unwrap());
            }
            scoped(&scope, &parts, "k").slot
        };
        let example = at("/", Some("example.com"));
        assert_eq!(at("/", Some("EXAMPLE.com")), example);
        assert_eq!(at("https://Example.Com/x", None), example);
        assert_eq!(at("https://user@example.com/x", Some("else")), example);
        for other in [
            at("/", None),
            at("/", Some("example.com:443")),
            at("/", Some("example.org")),
        ] {
            assert_ne!(other, example);
        }
    }

    #[test]
    fn contract_3_5_a_namespace_is_a_part_of_every_slot() {
        let within = |namespace: Option<&str>, source: ScopeSource| ScopeRules {
            namespace: namespace.map(Into::into),
            source,
            ..ScopeRules::default()
        };
        let by = parts(&[("authorization", "a")]);
        for source in [
            ScopeSource::default(),
            ScopeSource::shared_by_all("a"),
            ScopeSource::default().and(ScopeSource::host()),
        ] {
            let slots = [None, Some("billing"), Some("gateway"), Some("a")]
                .map(|namespace| within(namespace, source.clone()).slot(&by, b"k").unwrap().slot);
            let distinct: std::collections::HashSet<_> = slots.iter().collect();
            assert_eq!(distinct.len(), 4);
        }
        let billing = within(Some("billing"), ScopeSource::default());
        let sent = billing.slot(&by, b"k").unwrap().slot;
        assert_eq!(billing.slot_of(&Some("a").into(), b"k").unwrap(), sent);
        assert_eq!(
            within(Some(""), ScopeSource::default())
                .validate()
                .unwrap_err()
                .option(),
            "namespace"
        );
    }
}
