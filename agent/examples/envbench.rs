use atelier_agent::environment::*;
use std::time::Instant;
struct L;
impl BuildLog for L {
    fn line(&self, t: &str) {
        println!("| {t}");
    }
}
struct N;
impl BuildLog for N {
    fn line(&self, _: &str) {}
}
#[tokio::main]
async fn main() {
    let e = Environments::new("/tmp/envlab/envs".into(), Machine::from_environment());
    let deps: serde_json::Value = serde_json::from_str(&std::env::args().nth(1).unwrap()).unwrap();
    let w = Wanted::Inline {
        environment: atelier_core::spec::InlineEnvironment {
            conda: Some(serde_json::json!({"dependencies":deps})),
            ..Default::default()
        },
        images: ImagePolicy::HostPython,
    };
    let t = Instant::now();
    let r = e.realise(&w, &L).await;
    println!("{:?} in {:?}", r, t.elapsed());
    if r.is_err() {
        return;
    }
    let mut v = vec![];
    for _ in 0..2000 {
        let t = Instant::now();
        e.realise(&w, &N).await.unwrap();
        v.push(t.elapsed());
    }
    v.sort();
    println!("warm p50 {:?} p99 {:?}", v[1000], v[1980]);
}
