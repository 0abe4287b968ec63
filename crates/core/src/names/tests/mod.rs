//! The rules, one by one; each test's name starts with the number of its rule.

mod permutations;
mod planning;
mod resolving;
mod voting;
mod world;
