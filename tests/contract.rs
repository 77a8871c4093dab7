//! The contract, a file a section: each test names the row of `docs/contract.md` that it shows.

mod support;

mod contract {
    mod section_1_requests;
    mod section_2_keys;
    mod section_3_scopes;
    mod section_4_outcomes;
    mod section_4_verdicts;
    mod section_5_duplicates;
    mod section_6_limits;
    mod section_7_problems;
    mod section_7_profiles;
    mod section_8_bodies;
    mod section_8_uploads;
}
