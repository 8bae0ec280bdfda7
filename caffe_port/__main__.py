from caffe_port.cli import main

main()
