//! The server's bill, and its comparison with the orders.

use std::collections::BTreeMap;
use std::error::Error;

use http::Uri;
use serde::Deserialize;

use super::direct;
use super::network::Losses;
use super::orders::Ordered;

/// The charges of each session, screening and document.
pub(crate) struct Bill(BTreeMap<String, Charges>);

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Charges {
    count: usize,
    cents: u64,
}

#[derive(Deserialize)]
struct Answer {
    charges: Vec<Charge>,
}

#[derive(Deserialize)]
struct Charge {
    reference: String,
    amount_cents: u64,
}

/// Returns the account's charges.
pub(crate) async fn bill(server: &Uri) -> Result<Bill, Box<dyn Error + Send + Sync>> {
    let answer: Answer = serde_json::from_value(direct::get(server, "v1/billing").await?)?;
    let mut bill: BTreeMap<String, Charges> = BTreeMap::new();
    for charge in answer.charges {
        let charges = bill.entry(charge.reference).or_default();
        charges.count += 1;
        charges.cents += charge.amount_cents;
    }
    Ok(Bill(bill))
}

impl Bill {
    /// Returns the charges that are new since `before`.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        self.0.retain(|session, charges| before.0.get(session) != Some(charges));
        self
    }
}

/// Prints all figures, and returns whether each operation was charged once and nothing else was
/// charged. `documents` is the number of documents on the server, if documents were ordered.
pub(crate) fn print(seed: u64, ordered: &Ordered, losses: &Losses, bill: &Bill, documents: Option<usize>) -> bool {
    let Ordered {
        operations,
        made,
        attempts,
        replays,
        failures,
        took,
    } = ordered;
    let charges: usize = bill.0.values().map(|charges| charges.count).sum();
    let cents: u64 = bill.0.values().map(|charges| charges.cents).sum();
    let each = *attempts as f64 / (*operations).max(1) as f64;

    println!("seed        {seed}");
    println!("operations  {operations}, of which {} have a response", made.len());
    println!("attempts    {attempts}, {each:.2} for each operation");
    println!(
        "lost        {} requests ({} of them cut in the middle), {} responses ({} of them cut in the middle)",
        losses.requests, losses.requests_cut, losses.responses, losses.responses_cut
    );
    println!("replays     {replays}");
    println!("took        {:.1} s", took.as_secs_f64());
    println!(
        "bill        {charges} charges, {}.{:02} in total",
        cents / 100,
        cents % 100
    );
    if let Some(documents) = documents {
        println!("documents   {documents}");
    }
    for failure in failures.iter().take(5) {
        println!("failed      {failure}");
    }

    let charged_once = |reference: &String| bill.0.get(reference).is_some_and(|charges| charges.count == 1);
    let right = made.iter().all(charged_once)
        && made.len() == *operations
        && charges == *operations
        && documents.is_none_or(|documents| documents == *operations);
    if right {
        println!("The bill equals the operations.");
    } else if charges > *operations {
        println!(
            "The bill does not equal the operations: {} charges too many.",
            charges - operations
        );
    } else if charges < *operations {
        println!(
            "The bill does not equal the operations: {} charges are missing.",
            operations - charges
        );
    } else {
        println!(
            "The number of charges equals the number of operations, but the responses or the documents do not match them."
        );
    }
    right
}
