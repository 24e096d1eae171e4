B=${B:-/work/w-small/build}
g++ -std=c++23 -O2 -g -DBOOST_ASIO_NO_DEPRECATED -D_GLIBCXX_ASSERTIONS=1 -DBOOST_ALL_NO_LIB -pthread -I${B%/*}/include -I${B%/*}/src -c phase.cpp -o phase.o -nostartfiles || exit 1
g++ phase.o $B/src/libsafering.a -pthread -luring -lfmt -lxxhash -o phase
