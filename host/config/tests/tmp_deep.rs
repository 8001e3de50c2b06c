mod common;
#[test]
fn deep() {
    for n in [100_000usize, 1_000_000, 7_000_000] {
        for text in [format!("x{} = 1", ".a".repeat(n)), format!("[x{}]", ".a".repeat(n)), format!("x = {}", "[".repeat(n)), "[a]\n".repeat(n/4), "a=1\n".repeat(n/4), "= = =\n".repeat(n/4)] {
            let at = std::time::Instant::now();
            let r = common::load(&text);
            eprintln!("{n} {} {:?} {:?}", &text[..6], at.elapsed(), r.map_err(|e| (e.len(), e[0].reason.clone())).err());
        }
    }
}
