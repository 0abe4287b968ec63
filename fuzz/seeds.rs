//! Writes what each target begins with to `corpus/TARGET`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for target in dns_fanout::fuzz::TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target.name);
        std::fs::create_dir_all(&directory)?;
        for (number, octets) in target.seeds().enumerate() {
            std::fs::write(directory.join(format!("seed-{number}")), octets)?;
        }
    }
    Ok(())
}
