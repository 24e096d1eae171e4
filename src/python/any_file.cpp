// Files of any content, as streams of Python stand on them.
#include "python/bindings.hpp"

#include "checkpoint/file_reader.hpp"
#include "checkpoint/file_writer.hpp"

namespace safering::python {

namespace {

// Bytes of anything with the buffer protocol, contiguous; alive until it is destroyed.
class Bytes {
  public:
    Bytes(const py::object& object, int flags) {
        if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0)
            throw py::error_already_set();
    }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes() { PyBuffer_Release(&view_); }
    std::span<std::byte> span() const {
        return {static_cast<std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
    }

  private:
    Py_buffer view_;
};

// Long calls are made in steps, so that Ctrl-C is seen between them.
constexpr std::size_t step_bytes = std::size_t{256} << 20;

void check_signals() {
    if (PyErr_CheckSignals() != 0)
        throw py::error_already_set();
}

class FileWriter {
  public:
    FileWriter(const std::string& path, std::shared_ptr<Reactor> reactor,
               std::uint64_t expected_bytes) {
        const py::gil_scoped_release release;
        writer_ = value_or_throw(
            checkpoint::FileWriter::create(std::move(reactor), path, expected_bytes));
    }
    ~FileWriter() {
        const py::gil_scoped_release release;
        writer_.reset();
    }

    std::size_t write(const py::object& object) {
        const Bytes bytes(object, PyBUF_SIMPLE);
        std::span<const std::byte> left = bytes.span();
        while (!left.empty()) {
            const std::size_t count = std::min(left.size(), step_bytes);
            {
                const py::gil_scoped_release release;
                value_or_throw(writer_->write(left.first(count)));
            }
            left = left.subspan(count);
            check_signals();
        }
        return bytes.span().size();
    }

    std::vector<std::string> commit() {
        const py::gil_scoped_release release;
        return value_or_throw(writer_->commit());
    }

    void abandon() {
        const py::gil_scoped_release release;
        value_or_throw(writer_->abandon());
    }

    std::uint64_t size() const { return writer_->size(); }

  private:
    std::unique_ptr<checkpoint::FileWriter> writer_;
};

class FileReader {
  public:
    FileReader(const std::string& path, std::shared_ptr<Reactor> reactor) {
        const py::gil_scoped_release release;
        reader_ = value_or_throw(checkpoint::FileReader::open(std::move(reactor), path));
    }
    ~FileReader() {
        const py::gil_scoped_release release;
        reader_.reset();
    }

    std::uint64_t size() const { return reader_->size(); }

    std::size_t read_into(const py::object& object, std::uint64_t offset) const {
        const Bytes bytes(object, PyBUF_WRITABLE);
        return fill(bytes.span(), offset);
    }

    py::bytes read(std::uint64_t offset, std::uint64_t length) const {
        length = offset < size() ? std::min(length, size() - offset) : 0;
        // Filled before anybody else sees it.
        PyObject* const object =
            PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(length));
        if (object == nullptr)
            throw py::error_already_set();
        auto bytes = py::reinterpret_steal<py::bytes>(object);
        fill({reinterpret_cast<std::byte*>(PyBytes_AS_STRING(object)), length}, offset);
        return bytes;
    }

  private:
    std::size_t fill(std::span<std::byte> memory, std::uint64_t offset) const {
        std::size_t done = 0;
        while (done < memory.size()) {
            const std::span<std::byte> part =
                memory.subspan(done, std::min(memory.size() - done, step_bytes));
            std::size_t count = 0;
            {
                const py::gil_scoped_release release;
                count = value_or_throw(reader_->read(part, offset + done));
            }
            done += count;
            if (count < part.size())
                break;
            check_signals();
        }
        return done;
    }

    std::unique_ptr<checkpoint::FileReader> reader_;
};

} // namespace

void bind_any_file(py::module_& module) {
    py::class_<FileWriter>(module, "FileWriter")
        .def(py::init<const std::string&, std::shared_ptr<Reactor>, std::uint64_t>(),
             py::arg("path"), py::arg("reactor"), py::arg("expected_bytes") = 0)
        .def("write", &FileWriter::write, py::arg("data"))
        .def("commit", &FileWriter::commit)
        .def("abandon", &FileWriter::abandon)
        .def("size", &FileWriter::size);
    py::class_<FileReader>(module, "FileReader")
        .def(py::init<const std::string&, std::shared_ptr<Reactor>>(), py::arg("path"),
             py::arg("reactor"))
        .def("size", &FileReader::size)
        .def("read_into", &FileReader::read_into, py::arg("buffer"), py::arg("offset"))
        .def("read", &FileReader::read, py::arg("offset"), py::arg("length"));
}

} // namespace safering::python
