//! The rules, one by one; each test's name starts with the number of its rule.

mod bench;
mod caching;
mod configured;
mod explaining;
mod gone;
mod orders;
mod permutations;
mod planning;
mod policies;
mod resolving;
mod services;
mod stale;
mod stock;
mod storing;
mod upstreams;
mod voting;
mod world;
