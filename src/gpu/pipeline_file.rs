//! Compiled pipelines on disk, for backends that hand them out (Vulkan): a program's second start compiles less.

use super::Gpu;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The driver's cache of pipelines with the file that it came from. Written back when it is kept and when dropped, if anything was
/// compiled since.
pub(super) struct PipelineFile {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    changed: AtomicBool,
}

impl PipelineFile {
    /// The file for this device in `folder`; `None` where the backend has no such cache.
    pub fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, folder: &Path) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let path = folder.join(wgpu::util::pipeline_cache_key(info)?);
        let data = fs::read(&path).ok();
        // SAFETY: the file is what `get_data` gave for this vendor and device; wgpu and the driver check its header, and
        // it is renamed into place whole
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("engraft"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        Some(PipelineFile { cache, path, changed: AtomicBool::new(false) })
    }

    /// For a pipeline that is about to be compiled.
    pub fn used(&self) -> &wgpu::PipelineCache {
        self.changed.store(true, Ordering::Relaxed);
        &self.cache
    }

    fn keep(&self) {
        if self.changed.swap(false, Ordering::Relaxed) {
            // a cache that cannot be written costs time at the next start, nothing else
            let _ = self.write();
        }
    }

    fn write(&self) -> std::io::Result<()> {
        let Some(data) = self.cache.get_data() else { return Ok(()) };
        if fs::read(&self.path).is_ok_and(|known| known == data) {
            return Ok(());
        }
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        // without the patience that what must not be lost has: the next start compiles again
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&data)?;
        file.persist(&self.path).map_err(|e| e.error)?;
        Ok(())
    }
}

impl Drop for PipelineFile {
    fn drop(&mut self) {
        self.keep();
    }
}

impl Gpu {
    /// Writes what was compiled so far to the file of pipelines, which is written when the device is closed too: a process that is
    /// killed closes nothing. Costs nothing where nothing was compiled since the last time.
    pub fn keep_pipelines(&self) {
        if let Some(file) = &self.shared.pipeline_file {
            file.keep();
        }
    }
}
