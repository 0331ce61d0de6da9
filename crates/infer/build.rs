//! Compiles the C++ beside the crate and lets every binary of the crate find libtorch where it was built.

use std::path::Path;

fn main() -> Result<(), String> {
    // torch-sys says where libtorch is; it only does so to crates that depend on it directly.
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB")
        .map_err(|_| "torch-sys did not say where libtorch is: run scripts/setup.sh".to_owned())?;
    let include = Path::new(&lib).join("../include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("native/onednn.cpp")
        .compile("boxreel_onednn");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .opt_level(3)
            .flag("-mavx2")
            .flag("-mfma")
            .file("native/winograd.cpp")
            .compile("boxreel_winograd");
    }
    println!("cargo:rerun-if-changed=native");
    println!("cargo:libtorch={lib}");
    // Images carry libtorch elsewhere: they name the place, from the program's own, as in $ORIGIN/../lib.
    println!("cargo:rerun-if-env-changed=LIBTORCH_RPATH");
    let rpath = std::env::var("LIBTORCH_RPATH").unwrap_or(lib);
    println!("cargo:rustc-link-arg=-Wl,-rpath,{rpath}");
    Ok(())
}
