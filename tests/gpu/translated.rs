//! Every shader in every variant, translated to what Metal and Direct3D compile, as wgpu does there. Neither compiler is to be
//! had here, so this shows that the translation works and keeps each entry point, not that the result runs.

use naga::back::{hlsl, msl};
use naga::valid::{Capabilities, ModuleInfo, SubgroupOperationSet, ValidationFlags, Validator};
use supernet::device::source::{SOURCES, Variant};
use supernet::ops::launch::PAGES;

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
