//! `flumen schema`: the JSON Schema of the configuration files.

use clap::ValueEnum;
use flumen_builtin::bridge::TABLES;

use crate::exit::Failure;
use crate::registry::registry;

/// Arguments of `flumen schema`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which file.
    #[arg(value_enum, default_value_t = Which::Pipeline)]
    which: Which,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Which {
    /// A pipeline's file.
    Pipeline,
    /// flumen.toml.
    Agent,
    /// The file of `flumen bridge`.
    Bridge,
    /// The options of all components, as Markdown.
    Reference,
    /// The interface of plugins, as Markdown.
    Worlds,
}

/// Prints the schema.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.which {
        Which::Pipeline => {
            println!("{}", serde_json::to_string_pretty(&flumen_config::pipeline_schema(&registry()))?)
        }
        Which::Agent => println!("{}", serde_json::to_string_pretty(&flumen_config::agent_schema())?),
        Which::Bridge => {
            let schema = flumen_config::tables_schema("Flumen bridge", &TABLES, TABLES[0].kind);
            println!("{}", serde_json::to_string_pretty(&schema)?)
        }
        Which::Reference => print!("{}", flumen_config::reference_markdown(&registry())),
        Which::Worlds => print!("{}", flumen_author::worlds_markdown()?),
    }
    Ok(())
}
