//! Points the program at the libtorch it was linked with, so that it starts from any shell.

fn main() {
    if let Ok(folder) = std::env::var("DEP_BOXREEL_INFER_LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
