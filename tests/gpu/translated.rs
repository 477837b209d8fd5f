//! Every shader in every variant, translated to what Metal and Direct3D compile, as wgpu does there. Neither compiler is to be
//! had here, so this shows that the translation works and keeps each entry point, not that the result runs.

use naga::Statement;
use naga::back::{hlsl, msl};
use naga::valid::{Capabilities, ModuleInfo, SubgroupOperationSet, ValidationFlags, Validator};
use supernet::device::source::{SOURCES, Variant};
use supernet::ops::launch::PAGES;

use super::cases;
use super::harness::{Placed, Spread};

/// Parses and validates a shader.
fn module(text: &str) -> Result<(naga::Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|error| error.emit_to_string(text))?;
    let mut validator =
        Validator::new(ValidationFlags::all(), Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32);
    validator.subgroup_operations(SubgroupOperationSet::all()).subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    let info = validator.validate(&module).map_err(|error| error.emit_to_string(text))?;
    Ok((module, info))
}

/// Metal's shading language 2.4: macOS 12.
fn metal((module, info): &(naga::Module, ModuleInfo)) -> Result<Vec<String>, String> {
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let (_, translated) =
        msl::write_string(module, info, &options, &msl::PipelineOptions::default()).map_err(|e| e.to_string())?;
    translated.entry_point_names.into_iter().collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Shader model 6.0, the first with subgroups, which wgpu asks of DXC.
fn direct3d((module, info): &(naga::Module, ModuleInfo)) -> Result<Vec<String>, String> {
    let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
    let (mut text, pipeline) = (String::new(), hlsl::PipelineOptions::default());
    let translated =
        hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None).map_err(|e| e.to_string())?;
    translated.entry_point_names.into_iter().collect::<Result<_, _>>().map_err(|error| error.to_string())
}

#[test]
fn shaders_can_be_translated_for_metal_and_direct3d() {
    for source in SOURCES {
        for variant in Variant::ALL {
            for (pages, subgroups) in [(1, false), (PAGES, false), (PAGES, true)] {
                let what = format!("{}.wgsl, {variant:?}, {pages} pages, subgroups {subgroups}", source.stem);
                let parsed = module(&source.wgsl(variant, pages, subgroups)).unwrap_or_else(|e| panic!("{what}: {e}"));
                for (language, translate) in [("Metal", metal as fn(&_) -> _), ("Direct3D", direct3d)] {
                    let found = translate(&parsed).unwrap_or_else(|e| panic!("{what}: {language}: {e}"));
                    let expected = source.shader_entry_points();
                    // Names that a language reserves get something behind them.
                    let same = found.iter().zip(&expected).all(|(found, name)| found.starts_with(name));
                    assert!(same && found.len() == expected.len(), "{what}: {language} has {found:?}");
                }
            }
        }
    }
}

/// WebGPU grants so much shared memory everywhere; wgpu does not check it.
#[test]
fn shared_memory_is_within_what_is_granted_everywhere() {
    let mut most = 0;
    for source in SOURCES {
        for subgroups in [false, true] {
            let (module, info) =
                module(&source.wgsl(Variant::default(), 1, subgroups)).expect("it is parsed elsewhere");
            for (index, entry) in module.entry_points.iter().enumerate() {
                let used = info.get_entry_point(index);
                let shared = module.global_variables.iter().filter(|(handle, variable)| {
                    variable.space == naga::AddressSpace::WorkGroup && !used[*handle].is_empty()
                });
                let bytes: u32 = shared.map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx())).sum();
                assert!(bytes <= 16_384, "{} needs {bytes} bytes of shared memory", entry.name);
                most = most.max(bytes);
            }
        }
    }
    assert!(most > 8192, "{most} bytes: nothing was counted");
}

/// Whether a function is called from a block, directly or not.
fn calls(module: &naga::Module, block: &naga::Block, name: &str) -> bool {
    block.iter().any(|statement| match statement {
        Statement::Call { function, .. } => {
            let function = &module.functions[*function];
            function.name.as_deref() == Some(name) || calls(module, &function.body, name)
        }
        Statement::Block(inner) => calls(module, inner, name),
        Statement::If { accept, reject, .. } => [accept, reject].iter().any(|inner| calls(module, inner, name)),
        Statement::Loop { body, continuing, .. } => [body, continuing].iter().any(|inner| calls(module, inner, name)),
        Statement::Switch { cases, .. } => cases.iter().any(|case| calls(module, &case.body, name)),
        _ => false,
    })
}

/// Where pages are vectors, the store of an element loads and stores its three neighbours, which loses what another block
/// stores there meanwhile: seldom, and only on a busy device, so that this is read from the shaders.
#[test]
fn single_elements_are_stored_where_nobody_writes_their_neighbours() {
    let mut wide: Vec<_> = cases::all()
        .iter()
        .flat_map(|case| Placed::new(case, Spread::One).launches())
        .filter(|launch| launch.wide)
        .map(|launch| (launch.source, launch.kernel))
        .collect();
    wide.sort_unstable();
    wide.dedup();
    let mut storing = Vec::new();
    for source in SOURCES {
        let kernels: Vec<_> = wide.iter().filter(|(stem, _)| *stem == source.stem).map(|(_, kernel)| *kernel).collect();
        let variant = Variant { wide: true, ..Variant::ALL[0] };
        let (module, _) = module(&source.wgsl(variant, 1, false)).expect("it is parsed elsewhere");
        let entries = module.entry_points.iter().filter(|entry| calls(&module, &entry.function.body, "store1"));
        storing.extend(entries.map(|entry| entry.name.clone()).filter(|name| kernels.contains(&name.as_str())));
    }
    // One thread of all raises the flag, a state of its own.
    assert_eq!(storing, ["sgd"]);
}
