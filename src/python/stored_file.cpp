// One safetensors file, opened to read any boxes of its tensors: what load_file and safe_open stand on.
#include "python/bindings.hpp"

#include <algorithm>
#include <mutex>
#include <tuple>

#include <safering/storage_reader.hpp>

#include "large_memory.hpp"

namespace safering::python {

namespace {

// Any thread may read, several at a time.
class StoredFile {
  public:
    StoredFile(std::string path, std::shared_ptr<Reactor> reactor)
        // Beside a single file no manifest is looked for, so there are no digests to check.
        : reader_(std::move(path),
                  {.verification = Verification::off, .sharding_info = ShardingInfo::ignore},
                  std::move(reactor)) {
        const py::gil_scoped_release release;
        metadata_ = value_or_throw(reader_.read_metadata());
    }

    // [(name, dtype, shape), ...] in the order of the file.
    py::list tensors() const {
        std::vector<decltype(metadata_.tensors)::const_pointer> sorted;
        for (const auto& entry : metadata_.tensors)
            sorted.push_back(&entry);
        // Those without bytes before the one that begins where they do.
        std::ranges::stable_sort(sorted, {}, [](const auto* entry) {
            const StorageInfo& at = entry->second.storage.front();
            return std::pair(at.offset, at.offset + at.length);
        });
        py::list out;
        for (const auto* entry : sorted)
            out.append(py::make_tuple(entry->first, static_cast<int>(entry->second.dtype),
                                      to_tuple(entry->second.size)));
        return out;
    }

    py::dict metadata() const {
        py::dict out;
        for (const auto& [file, entries] : reader_.file_metadata())
            for (const auto& [key, value] : entries)
                out[py::str(key)] = value;
        return out;
    }

    // Fills `tensors`, each with the box of a stored one; has done so on return.
    void read(const py::list& names, const py::list& offsets, const py::list& lengths,
              const TensorColumns& tensors) {
        LoadPlan plan;
        plan.items.resize(py::len(names));
        check_columns(plan.items.size(), {offsets, lengths, tensors.addresses});
        TensorNames fqns;
        for (std::size_t i = 0; i < plan.items.size(); ++i) {
            ReadItem& item = plan.items[i];
            item.fqn = fqns.add(to_text(names[i]));
            item.storage_offsets = to_shape(offsets[i]);
            item.lengths = to_shape(lengths[i]);
        }
        DestinationPlanner planner(tensors.views<MutableTensorView>());
        std::future<LoadReport> running;
        {
            const py::gil_scoped_release release;
            const std::lock_guard lock(mutex_);
            running = reader_.async_read_data(plan, planner);
        }
        wait(running, py::none(), {}, [this] {
            const py::gil_scoped_release release;
            const std::lock_guard lock(mutex_);
            reader_.cancel();
        });
    }

  private:
    // The reader is one thread's at a time; what it has begun goes on without it.
    std::mutex mutex_;
    HuggingFaceStorageReader reader_;
    Metadata metadata_;
};

} // namespace

void bind_stored_file(py::module_& module) {
    py::class_<StoredFile>(module, "StoredFile")
        .def(py::init<std::string, std::shared_ptr<Reactor>>(), py::arg("path"), py::arg("reactor"))
        .def("tensors", &StoredFile::tensors)
        .def("metadata", &StoredFile::metadata)
        .def("read", &StoredFile::read, py::arg("names"), py::arg("offsets"), py::arg("lengths"),
             py::arg("tensors"));
    module.def(
        "advise_huge",
        [](std::uintptr_t address, std::size_t size) {
            advise_huge(reinterpret_cast<void*>(address), size);
        },
        py::arg("address"), py::arg("size"));
}

} // namespace safering::python
