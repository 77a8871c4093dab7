//! Nothing: Cargo wants more than a bench in a package.
