# Caffe 1.0 of PyPI's sdist brocolli-caffe 9.0.2: pycaffe's _caffe.so, and the program caffe, CPU only.
#
# build_caffe.py copies this file to a CMakeLists.txt and configures it. The sdist's own asks for conda, leaves the
# program out and compiles every layer once for each target; here each is compiled once, for both.

cmake_minimum_required(VERSION 3.18)
project(caffe CXX)

set(SOURCE "" CACHE PATH "the unpacked sdist")
set(PYTHON "" CACHE STRING "version of the Python that imports caffe, such as 311")
set(PYTHON_HEADERS "" CACHE STRING "folders of Python.h and numpy/arrayobject.h")

set(CMAKE_CXX_STANDARD 14)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

find_package(Threads REQUIRED)
set(libraries Threads::Threads)
foreach(name glog gflags protobuf boost_system boost_thread boost_filesystem boost_regex openblas lmdb leveldb snappy
        hdf5_hl hdf5)
  find_library(LIBRARY_${name} NAMES ${name} ${name}_serial PATH_SUFFIXES hdf5/serial REQUIRED)
  list(APPEND libraries ${LIBRARY_${name}})
endforeach()
find_library(LIBRARY_boost_python NAMES boost_python${PYTHON} REQUIRED)
find_path(HDF5_HEADERS hdf5.h PATH_SUFFIXES hdf5/serial REQUIRED)
find_path(BLAS_HEADERS cblas.h PATH_SUFFIXES openblas REQUIRED)
find_program(PROTOC protoc REQUIRED)

set(made ${CMAKE_BINARY_DIR}/made)
set(proto ${made}/caffe/proto)
file(MAKE_DIRECTORY ${proto})
add_custom_command(
  OUTPUT ${proto}/caffe.pb.cc ${proto}/caffe.pb.h ${proto}/caffe_pb2.py
  COMMAND ${PROTOC} -I${SOURCE}/src/caffe/proto --cpp_out=${proto} --python_out=${proto}
          ${SOURCE}/src/caffe/proto/caffe.proto
  DEPENDS ${SOURCE}/src/caffe/proto/caffe.proto)
add_custom_target(schema DEPENDS ${proto}/caffe.pb.h)

file(GLOB sources ${SOURCE}/src/caffe/*.cpp ${SOURCE}/src/caffe/3rdparty/*.cpp ${SOURCE}/src/caffe/layers/*.cpp
     ${SOURCE}/src/caffe/solvers/*.cpp ${SOURCE}/src/caffe/util/*.cpp)
add_library(core OBJECT ${sources} ${proto}/caffe.pb.cc)
add_dependencies(core schema)
add_library(_caffe MODULE ${SOURCE}/python/caffe/_caffe.cpp $<TARGET_OBJECTS:core>)
add_executable(caffe ${SOURCE}/tools/caffe.cpp $<TARGET_OBJECTS:core>)
foreach(target core _caffe caffe)
  target_compile_definitions(${target} PRIVATE CPU_ONLY USE_LMDB USE_LEVELDB USE_HDF5 CAFFE_VERSION=1.0.0)
  target_compile_options(${target} PRIVATE -w)  # warnings of code that is not ours
  target_include_directories(${target} PRIVATE ${made} ${SOURCE}/include ${SOURCE}/src ${HDF5_HEADERS} ${BLAS_HEADERS})
endforeach()
# net.cpp says which layer it makes in debug builds only, and that is what an error is to name.
set_source_files_properties(${SOURCE}/src/caffe/net.cpp PROPERTIES COMPILE_OPTIONS -UNDEBUG SKIP_PRECOMPILE_HEADERS ON)
target_precompile_headers(core PRIVATE <caffe/layer.hpp>)  # half of the time that the layers take
target_include_directories(_caffe PRIVATE ${PYTHON_HEADERS})
set_target_properties(_caffe PROPERTIES PREFIX "")
target_link_libraries(_caffe ${LIBRARY_boost_python} ${libraries})
target_link_libraries(caffe ${libraries})
