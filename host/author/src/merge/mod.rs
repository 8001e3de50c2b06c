//! A component of fewer core modules: those that are linked to each other become one.
//!
//! Tools that link at run time (componentize-py: CPython, its libraries and stubs for WASI are 38 modules) make
//! components whose instances are linked anew each time: thousands of functions are looked up by name, and each entry of the
//! table that they share is written. What is one module, the engine knows when it compiles: its table is filled where it is
//! used, and calls between its parts are direct.
//!
//! Modules join when all that they import is from each other, or a function of the host that needs none of them (one that uses
//! memory does, so what such functions are put into stays a module of its own). A module that runs something when it is
//! instantiated stays as it is: the order would change. A component that has anything that is not understood here comes back
//! unchanged, and so does one of which the result is not valid: this is for speed alone.

mod component;
mod core;
mod link;
mod module;
mod write;

use anyhow::Result;

pub(crate) use self::link::link;

/// The component with its modules put together, or as it was.
pub(crate) fn merge(component: Vec<u8>) -> Vec<u8> {
    match merged(&component) {
        Ok(Some(merged)) => merged,
        Ok(None) => component,
        Err(error) => {
            eprintln!("the component's modules stay apart, which costs time when it starts: {error:#}");
            component
        }
    }
}

/// `None`: there is nothing to put together.
fn merged(component: &[u8]) -> Result<Option<Vec<u8>>> {
    let parts = component::Parts::read(component)?;
    let Some(group) = parts.group() else { return Ok(None) };
    let merged = write::write(&parts, &group)?;
    wasmparser::Validator::new().validate_all(&merged)?;
    Ok(Some(merged))
}

#[cfg(test)]
mod tests {
    use wasmparser::{DataKind, ElementKind, Operator};

    use super::component::Parts;
    use super::*;

    fn parse(text: &str) -> Vec<u8> {
        let bytes = wat::parse_str(text).unwrap();
        wasmparser::Validator::new().validate_all(&bytes).unwrap();
        bytes
    }

    /// As tools do that link at run time: places in a memory and a table of all are sums.
    const LINKED: &str = r#"(component
        (core module $env
            (memory (export "memory") 1) (table (export "table") 8 funcref)
            (global (export "base") i32 (i32.const 4)) (global (export "count") (mut i32) (i32.const 5)))
        (core module $lib
            (import "env" "memory" (memory 1)) (import "env" "table" (table 8 funcref))
            (import "env" "base" (global $base i32))
            (global $next i32 (i32.add (global.get $base) (i32.const 2)))
            (func $one (export "one") (result i32) (i32.const 1))
            (elem (global.get $base) func $one) (data (global.get $next) "x"))
        (core module $app
            (import "lib" "again" (func $one (result i32))) (import "env" "count" (global (mut i32)))
            (export "handed-on" (func $one))
            (func (export "run") (result i32) (i32.add (global.get 0) (call $one))))
        (core instance $env (instantiate $env))
        (core instance $lib (instantiate $lib (with "env" (instance $env))))
        (core instance $names (export "again" (func $lib "one")))
        (core instance $app (instantiate $app (with "lib" (instance $names)) (with "env" (instance $env))))
        (func (export "run") (result u32) (canon lift (core func $app "run")))
        (func (export "one") (result u32) (canon lift (core func $app "handed-on"))))"#;

    fn constant(expression: &wasmparser::ConstExpr<'_>) -> i32 {
        let mut operators = expression.get_operators_reader().into_iter().map(Result::unwrap);
        match (operators.next(), operators.next()) {
            (Some(Operator::I32Const { value }), Some(Operator::End)) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn modules_that_import_from_each_other_become_one_whose_places_are_known() {
        let merged = merged(&parse(LINKED)).unwrap().unwrap();
        let parts = Parts::read(&merged).unwrap();
        let [(_, core)] = parts.modules.as_slice() else { panic!("{} modules", parts.modules.len()) };
        assert_eq!((parts.instances.len(), core.imports.len(), core.memories.len()), (1, 0, 1));
        let [element] = core.elements.as_slice() else { panic!("one element") };
        let ElementKind::Active { offset_expr, .. } = &element.kind else { panic!("a place") };
        assert_eq!(constant(offset_expr), 4);
        let [data] = core.data.as_slice() else { panic!("one piece of data") };
        let DataKind::Active { offset_expr, .. } = &data.kind else { panic!("a place") };
        assert_eq!((constant(offset_expr), data.data), (6, &b"x"[..]));
        let names: Vec<&str> = core.exports.iter().map(|export| export.name).collect();
        assert_eq!(names, ["2:handed-on", "2:run"], "nothing else is used");
        let handed_on = core.export("2:handed-on").unwrap().index;
        assert_eq!(handed_on, 0, "it is the library's");
    }

    /// As wit-component does: what needs the memory is put into a table when the memory is there.
    const SHIM: &str = r#"(component
        (import "log" (func $log (param "line" string)))
        (import "now" (func $now (result u64)))
        (core module $shim
            (table (export "functions") 1 funcref)
            (func (export "log") (param i32 i32) (call_indirect (param i32 i32) (local.get 0) (local.get 1) (i32.const 0))))
        (core module $main
            (import "host" "log" (func $log (param i32 i32))) (import "host" "now" (func $now (result i64)))
            (memory (export "memory") 1)
            (func (export "run") (drop (call $now)) (call $log (i32.const 0) (i32.const 0))))
        (core module $fixup
            (import "" "functions" (table 1 funcref)) (import "" "log" (func $log (param i32 i32)))
            (elem (i32.const 0) func $log))
        (core instance $shim (instantiate $shim))
        (core func $now (canon lower (func $now)))
        (core instance $host (export "log" (func $shim "log")) (export "now" (func $now)))
        (core instance $main (instantiate $main (with "host" (instance $host))))
        (core func $log (canon lower (func $log) (memory (core memory $main "memory"))))
        (core instance $late (export "functions" (table $shim "functions")) (export "log" (func $log)))
        (core instance (instantiate $fixup (with "" (instance $late))))
        (func (export "run") (canon lift (core func $main "run"))))"#;

    #[test]
    fn what_functions_of_the_host_are_put_into_stays_apart() {
        let merged = merged(&parse(SHIM)).unwrap().unwrap();
        let parts = Parts::read(&merged).unwrap();
        let [(_, fixup), (_, one)] = parts.modules.as_slice() else {
            panic!("{} modules", parts.modules.len())
        };
        assert_eq!((one.imports.len(), one.tables.len(), one.functions.len()), (1, 1, 2));
        assert_eq!((fixup.imports.len(), fixup.elements.len()), (2, 1));
    }

    #[test]
    fn what_runs_at_its_start_or_stands_alone_stays_as_it_is() {
        let starts = LINKED.replace("(elem (global", "(func $start) (start $start) (elem (global");
        // Without the library there is nothing left that belongs together but the environment.
        assert!(merged(&parse(&starts)).unwrap().is_none());
        let alone = parse("(component (core module (memory 1)) (core instance (instantiate 0)))");
        assert_eq!(merge(alone.clone()), alone);
        let module = wat::parse_str("(module)").unwrap();
        assert_eq!(merge(module.clone()), module, "no component");
    }

    #[test]
    fn a_module_and_its_adapter_call_each_other() {
        let module = r#"(module
            (import "wasi" "answer" (func $answer (result i32))) (import "flumen" "log" (func $log))
            (memory (export "memory") 1) (global $own (mut i64) (i64.const 1))
            (func (export "run") (result i32) (call $log) (call $answer)))"#;
        let adapter = r#"(module
            (import "env" "memory" (memory 0)) (global $seed (mut i64) (i64.const 2))
            (func (export "unused"))
            (func (export "answer") (result i32) (global.set $seed (i64.const 3)) (i32.load (i32.const 0))))"#;
        let (module, adapter) = (wat::parse_str(module).unwrap(), wat::parse_str(adapter).unwrap());
        let linked = link(&module, &adapter, "wasi").unwrap();
        wasmparser::Validator::new().validate_all(&linked).unwrap();
        let core = core::Core::read(&linked).unwrap();
        let [log] = core.imports.as_slice() else { panic!("{:?}", core.imports) };
        assert_eq!((log.module, log.name), ("flumen", "log"));
        assert_eq!((core.memories.len(), core.globals.len(), core.functions.len()), (1, 2, 3));
        let names: Vec<&str> = core.exports.iter().map(|export| export.name).collect();
        assert_eq!(names, ["memory", "run"], "the adapter's are its own");
        let error = link(&module, &adapter, "flumen").unwrap_err();
        assert_eq!(error.to_string(), "there is no log to import");
    }
}
