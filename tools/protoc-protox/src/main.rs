//! As much of `protoc` as prost-build asks for: reads .proto files and writes their
//! descriptors, `--include_imports --include_source_info -o FILE -I DIR... FILES`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("protoc-protox: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let (mut output, mut includes, mut files) = (None, Vec::new(), Vec::new());
    let mut arguments = std::env::args_os().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .map(PathBuf::from)
                .ok_or("a value is missing")
        };
        match argument.to_str() {
            Some("--include_imports" | "--include_source_info") => {}
            Some("-o") => output = Some(value()?),
            Some("-I") => includes.push(value()?),
            Some(option) if option.starts_with('-') => {
                return Err(format!("option {option} is not known here").into());
            }
            _ => files.push(PathBuf::from(argument)),
        }
    }
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(files)?;
    std::fs::write(
        output.ok_or("-o FILE is missing")?,
        compiler.encode_file_descriptor_set(),
    )?;
    Ok(())
}
